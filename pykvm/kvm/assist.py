"""What a guest needs on a KVM that works without hardware virtualization.

Such a KVM (PVM, for one) runs the guest's user mode on the processor and its
kernel mode in KVM's instruction emulator. Two things break there, and
:class:`Assist` mends both from outside, without a change to the guest:

*System calls.* SYSCALL jumps to LSTAR but stays at CPL 3. Fetching the
kernel's page at that level is a page fault, which is delivered correctly. A
hardware breakpoint on the guest's page-fault handler brings each of these to
us; if the stacked rip is LSTAR, the registers are set to what SYSCALL should
have made of them. Breakpoints work in the emulator only, not at CPL 3, so
there is no earlier moment to catch. The handler's address comes from IDT[14],
read when the guest writes LSTAR: an MSR filter tells us of that. Once it is
clear that this works, ``trampoline.py`` moves it into the guest, without exits.

*Instructions that the emulator refuses.* ``emulate.py`` carries them out.

The rest is advice to Linux: ``linux_options.py``. Ordinary hosts never load
this module.
"""

from collections.abc import Iterable
from struct import Struct
from threading import Lock

from pykvm.errors import PykvmError
from pykvm.kvm import constants as c
from pykvm.kvm import trampoline
from pykvm.kvm.constants import MSR_LSTAR, MSR_STAR, MSR_SYSCALL_MASK
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.emulate import Fault, Outcome, State, emulate, no_operation_length
from pykvm.kvm.emulate import GuestFault as _GuestFault
from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import Debug, Exit, InternalError, MsrWrite
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.linux_options import linux_options, without_hypercalls
from pykvm.kvm.paging import GuestView
from pykvm.kvm.vcpu import Vcpu
from pykvm.kvm.vm import Vm
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.memory.ram import GuestAddressError, Ram

if TYPE_CHECKING:
    from pykvm.kvm.structs import Regs, Segment

_GPR = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
]
_FRAME = Struct("<6Q")  # error code, rip, cs, rflags, rsp, ss: SDM volume 3, figure 6-8
_GATE = Struct("<HHBBHII")  # SDM volume 3, figure 6-7
_PAGE_FAULT_USER = 1 << 2
_RFLAGS_RF = 1 << 16
_RFLAGS_RESERVED = 1 << 1
# What SYSCALL can leave in R11: the status flags, TF, IF, DF, NT, RF, AC and ID. A program that
# jumps to LSTAR instead chooses R11 itself; it must not gain IOPL that way.
_R11_FLAGS = 0x25_4FD5 | _RFLAGS_RESERVED
_DR6_B0 = 1 << 0
_DR6_FIXED = 0xFFFF_0FF0
_DR7_ENABLE_0 = 0x402
_EFER_LMA = 1 << 10
_PAGE_FAULT_GATE = 14 * 16
_INTERRUPT_GATE = 0x8E
_GATE_KIND = 0x9F  # but for the privilege level
_RFLAGS_IF_DF = 0x600
# A kernel whose programs make system calls has its interrupt table as it will stay.
_CALLS_BEFORE_TRAMPOLINE = 16
_DB_VECTOR = 1


class RefusedInstruction(PykvmError):
    """KVM refused an instruction of the guest's kernel that pykvm cannot carry out either."""

    def __init__(self, code: bytes, rip: int, why: str = "") -> None:
        super().__init__(
            f"this host's KVM refuses the guest's instruction at rip {rip:#x}"
            + (f", which {why}" if why else "")
            + f" (bytes {code.hex(' ') or 'unknown'})",
            "keep the guest from using it (Linux: --append clearcpuid=FEATURE), use a guest built "
            "for such hosts, or a host with hardware virtualization; please report the bytes",
        )
        self.code = code
        self.rip = rip


class _VcpuState:
    """Of one vCPU; only its own thread uses it."""

    def __init__(self) -> None:
        self.lstar = 0
        self.syscall_mask = 0
        self.idt_base = 0
        self.handler = 0
        """Where the breakpoint is: the guest's page-fault entry. 0: none."""
        self.stepping = False
        """The breakpoint is off for one instruction."""
        self.delivered = 0
        """System calls that have come to us."""
        self.return_by_iret = False


class Assist:
    """Mends what is broken for the guest of one VM; of no use where nothing is.

    Give :meth:`handle` every exit before anything else sees it, in the thread
    of its vCPU, and call :meth:`prepare` once per vCPU before its first run
    and after its state has been replaced.
    """

    def __init__(self, traits: HostTraits, vm: Vm, ram: Ram) -> None:
        """Set up ``vm``, best before it has anything else; MissingCapability."""
        self._ram = ram
        self._deliver_syscalls = not traits.syscall_works
        self._states: dict[int, _VcpuState] = {}
        # vCPUs usually share one interrupt table.
        self._installing = Lock()
        self._installed = False
        if vm.check_extension(c.KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0:
            vm.enable_cap(c.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
        if self._deliver_syscalls:
            vm.require(c.KVM_CAP_SET_GUEST_DEBUG)
            vm.set_msr_filter(deny_writes=[(MSR_STAR, MSR_SYSCALL_MASK + 1 - MSR_STAR)])

    def command_line(self, tsc_khz: int) -> list[str]:
        """What a Linux guest needs on its command line; ``tsc_khz`` as KVM_GET_TSC_KHZ says."""
        return linux_options(tsc_khz)

    def cpuid(self, leaves: Iterable[CpuidEntry]) -> list[CpuidEntry]:
        """The CPUID ``leaves`` that a vCPU is to show instead of ``leaves``."""
        return without_hypercalls(leaves)

    @property
    def system_calls(self) -> int:
        """How many system calls have been delivered from outside, on all vCPUs."""
        return sum(state.delivered for state in self._states.values())

    def prepare(self, vcpu: Vcpu) -> None:
        """Take over the system-call MSRs and interrupt table that ``vcpu`` has now."""
        state = self._states.setdefault(vcpu.index, _VcpuState())
        if not self._deliver_syscalls:
            return
        # Every system call looks at both: with two ioctls instead it takes 15 us longer.
        vcpu.sync(c.KVM_SYNC_X86_REGS | c.KVM_SYNC_X86_SREGS)
        msrs = vcpu.get_msrs((MSR_LSTAR, MSR_SYSCALL_MASK))
        state.lstar, state.syscall_mask = msrs[MSR_LSTAR], msrs[MSR_SYSCALL_MASK]
        self._place_breakpoint(vcpu, state)

    def handle(self, vcpu: Vcpu, reason: Exit) -> bool:
        """Whether ``reason`` was ours and is dealt with: run the vCPU again.

        RefusedInstruction if the guest cannot go on.
        """
        kind = type(reason)
        state = self._states[vcpu.index]
        if kind is Debug:
            return self._debug(vcpu, state, reason)  # type: ignore[arg-type]
        if kind is InternalError:
            return self._internal_error(vcpu, state, reason)  # type: ignore[arg-type]
        if kind is MsrWrite:
            return self._msr_write(vcpu, state, reason)  # type: ignore[arg-type]
        if state.lstar and not state.delivered:
            # A kernel may set up its interrupt table after LSTAR, but not after its first program.
            self._place_breakpoint(vcpu, state)
        return False

    # System calls

    def _msr_write(self, vcpu: Vcpu, state: _VcpuState, reason: MsrWrite) -> bool:
        if not MSR_STAR <= reason.index <= MSR_SYSCALL_MASK:
            return False
        try:
            vcpu.set_msrs({reason.index: reason.value})
        except KvmError:
            reason.fault()
            return True
        if reason.index == MSR_SYSCALL_MASK:
            state.syscall_mask = reason.value & 0xFFFF_FFFF
        elif reason.index == MSR_LSTAR:
            state.lstar = reason.value
            self._place_breakpoint(vcpu, state)
        return True

    def _place_breakpoint(self, vcpu: Vcpu, state: _VcpuState) -> None:
        """Put the breakpoint on the handler that IDT[14] names now, if that needs it."""
        handler = self._page_fault_handler(vcpu, state) if state.lstar else 0
        if handler and self._is_trampoline(vcpu, handler, state.lstar):
            self._installed = True
            handler = 0
        if handler != state.handler:
            state.handler = handler
            _breakpoint(vcpu, handler)

    def _is_trampoline(self, vcpu: Vcpu, handler: int, lstar: int) -> bool:
        try:
            code = GuestView(self._ram, vcpu.sregs).read(handler, trampoline.SIGNATURE_SIZE)
        except (_GuestFault, GuestAddressError):
            return False
        return trampoline.is_trampoline(code, lstar)

    def _page_fault_handler(self, vcpu: Vcpu, state: _VcpuState) -> int:
        sregs = vcpu.sregs
        state.idt_base = sregs.idt.base
        if sregs.idt.limit < _PAGE_FAULT_GATE + 15:
            return 0
        try:
            gate = GuestView(self._ram, sregs).read(state.idt_base + _PAGE_FAULT_GATE, 16)
        except (_GuestFault, GuestAddressError):
            return 0
        low, _, _, kind, middle, high, _ = _GATE.unpack(gate)
        return low | middle << 16 | high << 32 if kind & 0x80 else 0

    def _debug(self, vcpu: Vcpu, state: _VcpuState, reason: Debug) -> bool:
        if state.stepping:
            state.stepping = False
            _breakpoint(vcpu, state.handler)
            return True
        if reason.pc != state.handler or not reason.dr6 & _DR6_B0:
            _debug_exception(vcpu, reason.dr6)
            return True
        sregs = vcpu.sregs
        if sregs.idt.base != state.idt_base:
            self._place_breakpoint(vcpu, state)
        view = GuestView(self._ram, sregs)
        regs = vcpu.regs
        try:
            error_code, rip, cs, _, rsp, _ = _FRAME.unpack(view.read(regs.rsp, _FRAME.size))
        except (_GuestFault, GuestAddressError):
            rip = cs = error_code = rsp = 0
        if rip == state.lstar and cs & 3 == 3 and error_code & _PAGE_FAULT_USER:
            # CS is right already, and SS is null, as after any interrupt; kernels reload neither.
            flags = regs.r11 & _R11_FLAGS
            # SYSRET is refused on some hosts. Linux returns by IRET instead when it finds RF in
            # R11, which costs 9 us: less than an exit.
            regs.r11 = flags | _RFLAGS_RF if state.return_by_iret else flags
            regs.rsp = rsp
            regs.rip = state.lstar
            regs.rflags = (flags & ~state.syscall_mask) | _RFLAGS_RESERVED
            vcpu.changed(c.KVM_SYNC_X86_REGS)
            state.delivered += 1
            if state.delivered == _CALLS_BEFORE_TRAMPOLINE and self._install(state, view):
                self._place_breakpoint(vcpu, state)
        else:
            self._step_over(vcpu, state, view)
            if self._installed and not state.stepping:
                # Another vCPU did it; this one's breakpoint is of no use any more.
                self._place_breakpoint(vcpu, state)
        return True

    def _install(self, state: _VcpuState, view: GuestView) -> bool:
        """Write the trampoline into the guest's kernel; False if that cannot be, or is done."""
        handler, gate = state.handler, state.idt_base + _PAGE_FAULT_GATE
        # The trampoline clears these two, and an interrupt gate the rest that matters.
        if state.syscall_mask & _RFLAGS_IF_DF != _RFLAGS_IF_DF:
            return False
        with self._installing:
            if self._installed:
                return False
            at = trampoline.find_room(view, handler)
            code = trampoline.build(at, handler, state.lstar, return_by_iret=state.return_by_iret)
            try:
                self._installed = bool(code) and self._redirect(view, gate, at, code)
            except (_GuestFault, GuestAddressError):
                return False
            return self._installed

    def _redirect(self, view: GuestView, gate: int, at: int, code: bytes) -> bool:
        """Write ``code`` to ``at`` and have the ``gate`` lead there."""
        offset = self._ram.translate(view.physical(gate), 16)
        if offset < 0 or offset % 8:
            return False
        word, high = self._ram.u64[offset >> 3], self._ram.u64[(offset >> 3) + 1] & 0xFFFF_FFFF
        if word >> 40 & _GATE_KIND != _INTERRUPT_GATE or high != at >> 32:
            return False
        self._ram.write(view.physical(at), code)
        # One store, because other vCPUs may be taking page faults.
        low, middle = at & 0xFFFF, at >> 16 & 0xFFFF
        self._ram.u64[offset >> 3] = word & 0x0000_FFFF_FFFF_0000 | low | middle << 48
        return True

    def _step_over(self, vcpu: Vcpu, state: _VcpuState, view: GuestView) -> None:
        """Go on with a real page fault. KVM's breakpoints heed no RFLAGS.RF, so past the first
        instruction, which is a NOP in every Linux: it makes room for CLAC."""
        regs = vcpu.regs
        try:
            length = no_operation_length(view.read(regs.rip, 10))
        except (_GuestFault, GuestAddressError):
            length = 0
        if length:
            regs.rip += length
            vcpu.changed(c.KVM_SYNC_X86_REGS)
        else:
            state.stepping = True
            vcpu.set_guest_debug(c.KVM_GUESTDBG_ENABLE | c.KVM_GUESTDBG_SINGLESTEP)

    # Refused instructions

    def _internal_error(self, vcpu: Vcpu, state: _VcpuState, reason: InternalError) -> bool:
        if reason.suberror != c.KVM_INTERNAL_ERROR_EMULATION:
            return False
        regs, sregs = vcpu.regs, vcpu.sregs
        view = GuestView(self._ram, sregs)
        code = reason.instruction or view.instruction(regs.rip)
        if not sregs.efer & _EFER_LMA or not sregs.cs.l:
            raise RefusedInstruction(code, regs.rip, "is not 64-bit code")
        if sregs.cs.dpl:
            raise RefusedInstruction(code, regs.rip, "is no kernel code")
        before = State(
            gpr=[getattr(regs, name) for name in _GPR],
            rip=regs.rip,
            rflags=regs.rflags,
            cr0=sregs.cr0,
            fs_base=sregs.fs.base,
            gs_base=sregs.gs.base,
        )
        try:
            result = emulate(code, before, view)
        except GuestAddressError:
            raise RefusedInstruction(code, regs.rip, "accesses no RAM") from None
        if result is None:
            raise RefusedInstruction(code, regs.rip)
        _load(regs, before)
        vcpu.changed(c.KVM_SYNC_X86_REGS)
        if isinstance(result, Fault):
            _inject(vcpu, result)
        elif result is Outcome.TO_USER:
            state.return_by_iret = True
            _enter_user_mode(vcpu)
        return True


def _breakpoint(vcpu: Vcpu, address: int) -> None:
    if address:
        vcpu.set_guest_debug(
            c.KVM_GUESTDBG_ENABLE | c.KVM_GUESTDBG_USE_HW_BP,
            (address, 0, 0, 0, 0, 0, 0, _DR7_ENABLE_0),
        )
    else:
        vcpu.set_guest_debug(0)


def _load(regs: "Regs", state: State) -> None:
    for name, value in zip(_GPR, state.gpr, strict=True):
        setattr(regs, name, value)
    regs.rip, regs.rflags = state.rip, state.rflags


def _inject(vcpu: Vcpu, fault: Fault) -> None:
    if fault.address is not None:
        vcpu.sregs.cr2 = fault.address
        vcpu.changed(c.KVM_SYNC_X86_SREGS)
    exception = vcpu.events.exception
    exception.injected = 1
    exception.pending = 0
    exception.nr = fault.vector
    exception.has_error_code = fault.error_code is not None
    exception.error_code = fault.error_code or 0
    vcpu.changed(c.KVM_SYNC_X86_EVENTS)


def _debug_exception(vcpu: Vcpu, dr6: int) -> None:
    """Give the guest a #DB of its own that KVM, with our breakpoint set, has given to us."""
    debugregs = vcpu.get_debugregs()
    debugregs.dr6 = dr6 | _DR6_FIXED
    vcpu.set_debugregs(debugregs)
    _inject(vcpu, Fault(_DB_VECTOR))


def _enter_user_mode(vcpu: Vcpu) -> None:
    """CS and SS as SYSRET to 64-bit mode loads them (SDM volume 2, SYSRET)."""
    base = vcpu.get_msrs((MSR_STAR,))[MSR_STAR] >> 48
    sregs = vcpu.sregs
    _flat(sregs.cs, (base + 16) | 3, kind=11, long=1)
    _flat(sregs.ss, (base + 8) | 3, kind=3, long=0)
    vcpu.changed(c.KVM_SYNC_X86_SREGS)


def _flat(segment: "Segment", selector: int, kind: int, long: int) -> None:
    segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, selector & 0xFFFF
    segment.type, segment.s, segment.dpl, segment.present = kind, 1, 3, 1
    segment.l, segment.db, segment.g, segment.unusable = long, 1 - long, 1, 0
