"""Delivers the guest's system calls where SYSCALL does not reach the guest's kernel.

There SYSCALL jumps to LSTAR but stays at CPL 3. Fetching the kernel's page at that
level is a page fault, and page faults are delivered correctly. A hardware breakpoint
on the guest's page-fault handler makes each of them an exit. If the stacked rip is
LSTAR, the fault was a system call, and the registers are set as SYSCALL should have
set them. Breakpoints work in KVM's emulator only, not at CPL 3, so no earlier moment
can be caught.

The handler's address comes from IDT[14], which is read when the guest writes LSTAR. An
MSR filter makes that write an exit. After a few system calls ``trampoline.py`` moves
the work into the guest, where it needs no exits.
"""

from struct import Struct
from threading import Lock

from pykvm.kvm import constants as c
from pykvm.kvm import trampoline
from pykvm.kvm.constants import MSR_LSTAR, MSR_STAR, MSR_SYSCALL_MASK
from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import Debug, MsrWrite
from pykvm.kvm.guest_fault import DB_VECTOR, Fault, GuestFault, inject
from pykvm.kvm.instructions import no_operation_length
from pykvm.kvm.paging import GuestView
from pykvm.kvm.vcpu import Vcpu
from pykvm.kvm.vm import Vm
from pykvm.memory.ram import GuestAddressError, Ram

_FRAME = Struct("<6Q")  # error code, rip, cs, rflags, rsp, ss: SDM volume 3, figure 6-8
_GATE = Struct("<HHBBHII")  # SDM volume 3, figure 6-7
_PAGE_FAULT_USER = 1 << 2
_RFLAGS_RF = 1 << 16
_RFLAGS_RESERVED = 1 << 1
# SYSCALL can leave these in R11: the status flags, TF, IF, DF, NT, RF, AC and ID. A program that
# jumps to LSTAR instead chooses R11 itself; it must not gain IOPL that way.
_R11_FLAGS = 0x25_4FD5 | _RFLAGS_RESERVED
_DR6_B0 = 1 << 0
_DR6_FIXED = 0xFFFF_0FF0
_DR7_ENABLE_0 = 0x402
_PAGE_FAULT_GATE = 14 * 16
_INTERRUPT_GATE = 0x8E
_GATE_KIND = 0x9F  # all but the privilege level
_RFLAGS_IF_DF = 0x600
# A kernel whose programs make system calls no longer changes its interrupt table.
_CALLS_BEFORE_TRAMPOLINE = 16


_UNKNOWN = -1


class _VcpuState:
    """The state of one vCPU. Only the vCPU's thread uses it."""

    def __init__(self) -> None:
        self.lstar = 0
        self.syscall_mask = 0
        self.idt_base = 0
        self.handler = 0
        """The address of the breakpoint: the guest's page-fault handler. 0: no breakpoint."""
        self.stepping = False
        """The breakpoint is off for one instruction."""
        self.delivered = 0
        """The number of system calls that were delivered by an exit."""
        self.return_by_iret = False
        self.trampoline = False
        """The interrupt table leads to a trampoline, or is about to."""


class SyscallDelivery:
    """Delivers the system calls of the guest of one VM.

    Each method that takes a vCPU runs in that vCPU's thread.
    """

    def __init__(self, vm: Vm, ram: Ram) -> None:
        """Have KVM report writes of the system-call MSRs; MissingCapability."""
        self._ram = ram
        self._states: dict[int, _VcpuState] = {}
        # vCPUs usually share one interrupt table.
        self._installing = Lock()
        vm.require(c.KVM_CAP_SET_GUEST_DEBUG)
        vm.set_msr_filter(deny_writes=[(MSR_STAR, MSR_SYSCALL_MASK + 1 - MSR_STAR)])

    @property
    def count(self) -> int:
        """The number of system calls that exits delivered, on all vCPUs."""
        return sum(state.delivered for state in self._states.values())

    @property
    def _installed(self) -> bool:
        return any(state.trampoline for state in self._states.values())

    def prepare(self, vcpu: Vcpu) -> None:
        """Take over the system-call MSRs, the interrupt table and the kernel of ``vcpu``."""
        before = self._states.get(vcpu.index)
        state = self._states[vcpu.index] = _VcpuState()
        if before is not None:
            state.return_by_iret = before.return_by_iret
            state.handler = _UNKNOWN if before.stepping else before.handler
        # Every system call looks at both: with two ioctls instead it takes 15 us longer.
        vcpu.sync(c.KVM_SYNC_X86_REGS | c.KVM_SYNC_X86_SREGS)
        msrs = vcpu.get_msrs((MSR_LSTAR, MSR_SYSCALL_MASK))
        state.lstar, state.syscall_mask = msrs[MSR_LSTAR], msrs[MSR_SYSCALL_MASK]
        self._place_breakpoint(vcpu, state)

    def return_by_iret(self, vcpu: Vcpu) -> None:
        """Have Linux return from system calls by IRET, because KVM refuses SYSRET."""
        self._states[vcpu.index].return_by_iret = True

    def look_again(self, vcpu: Vcpu) -> None:
        """Read the interrupt table again, until the first system call of ``vcpu``.

        A kernel may set up its interrupt table after LSTAR, but not after its first program.
        """
        state = self._states[vcpu.index]
        if state.lstar and not state.delivered and not state.trampoline:
            self._place_breakpoint(vcpu, state)

    def msr_write(self, vcpu: Vcpu, reason: MsrWrite) -> bool:
        """Carry out a write of a system-call MSR; False for other MSRs."""
        state = self._states[vcpu.index]
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
        """Put the breakpoint on the handler that IDT[14] names, unless a trampoline is there."""
        handler = self._page_fault_handler(vcpu, state) if state.lstar else 0
        state.trampoline = bool(handler) and self._is_trampoline(vcpu, handler, state.lstar)
        if state.trampoline:
            handler = 0
        if handler != state.handler:
            state.handler = handler
            _set_breakpoint(vcpu, handler)

    def _is_trampoline(self, vcpu: Vcpu, handler: int, lstar: int) -> bool:
        try:
            code = GuestView(self._ram, vcpu.sregs).read(handler, trampoline.SIGNATURE_SIZE)
        except (GuestFault, GuestAddressError):
            return False
        return trampoline.is_trampoline(code, lstar)

    def _page_fault_handler(self, vcpu: Vcpu, state: _VcpuState) -> int:
        sregs = vcpu.sregs
        state.idt_base = sregs.idt.base
        if sregs.idt.limit < _PAGE_FAULT_GATE + 15:
            return 0
        try:
            gate = GuestView(self._ram, sregs).read(state.idt_base + _PAGE_FAULT_GATE, 16)
        except (GuestFault, GuestAddressError):
            return 0
        low, _, _, kind, middle, high, _ = _GATE.unpack(gate)
        return low | middle << 16 | high << 32 if kind & 0x80 else 0

    def debug(self, vcpu: Vcpu, reason: Debug) -> None:
        """Deliver a system call, or pass on a page fault or debug exception of the guest."""
        state = self._states[vcpu.index]
        if state.stepping:
            state.stepping = False
            _set_breakpoint(vcpu, state.handler)
            return
        if reason.pc != state.handler or not reason.dr6 & _DR6_B0:
            _raise_debug_exception(vcpu, reason.dr6)
            return
        sregs = vcpu.sregs
        if sregs.idt.base != state.idt_base:
            self._place_breakpoint(vcpu, state)
        view = GuestView(self._ram, sregs)
        regs = vcpu.regs
        try:
            error_code, rip, cs, _, rsp, _ = _FRAME.unpack(view.read(regs.rsp, _FRAME.size))
        except (GuestFault, GuestAddressError):
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
                # A different vCPU installed the trampoline; this one's breakpoint has no more use.
                self._place_breakpoint(vcpu, state)

    def _install(self, state: _VcpuState, view: GuestView) -> bool:
        """Write the trampoline into the guest's kernel; False if it is there, or cannot be."""
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
                state.trampoline = bool(code) and self._redirect(view, gate, at, code)
            except (GuestFault, GuestAddressError):
                return False
            return state.trampoline

    def _redirect(self, view: GuestView, gate: int, at: int, code: bytes) -> bool:
        """Write ``code`` to ``at`` and point ``gate`` there; False if the gate is unsuitable."""
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
        """Continue with a real page fault, behind the handler's first instruction.

        KVM's breakpoints ignore RFLAGS.RF, so the instruction at the breakpoint has to be
        skipped. It is a NOP in every Linux, which makes room for CLAC there.
        """
        regs = vcpu.regs
        try:
            length = no_operation_length(view.read(regs.rip, 10))
        except (GuestFault, GuestAddressError):
            length = 0
        if length:
            regs.rip += length
            vcpu.changed(c.KVM_SYNC_X86_REGS)
        else:
            state.stepping = True
            vcpu.set_guest_debug(c.KVM_GUESTDBG_ENABLE | c.KVM_GUESTDBG_SINGLESTEP)


def _set_breakpoint(vcpu: Vcpu, address: int) -> None:
    """Break before the kernel executes ``address``; 0: nowhere."""
    if address:
        vcpu.set_guest_debug(
            c.KVM_GUESTDBG_ENABLE | c.KVM_GUESTDBG_USE_HW_BP,
            (address, 0, 0, 0, 0, 0, 0, _DR7_ENABLE_0),
        )
    else:
        vcpu.set_guest_debug(0)


def _raise_debug_exception(vcpu: Vcpu, dr6: int) -> None:
    """Give the guest a #DB of its own, which KVM reported to pykvm because of the breakpoint."""
    debugregs = vcpu.get_debugregs()
    debugregs.dr6 = dr6 | _DR6_FIXED
    vcpu.set_debugregs(debugregs)
    inject(vcpu, Fault(DB_VECTOR))
