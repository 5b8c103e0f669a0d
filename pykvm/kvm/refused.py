"""Carries out an instruction of the guest's kernel that KVM's emulator refuses."""

from pykvm.errors import PykvmError
from pykvm.kvm import constants as c
from pykvm.kvm.constants import MSR_STAR
from pykvm.kvm.emulate import Outcome, State, emulate
from pykvm.kvm.exits import InternalError
from pykvm.kvm.guest_fault import Fault, inject
from pykvm.kvm.paging import GuestView
from pykvm.kvm.segments import load_code, load_data
from pykvm.kvm.vcpu import Vcpu
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.memory.ram import GuestAddressError, Ram

if TYPE_CHECKING:
    from pykvm.kvm.structs import Regs

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
_EFER_LMA = 1 << 10


class RefusedInstruction(PykvmError):
    """KVM refused an instruction of the guest's kernel, and pykvm cannot carry it out either."""

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


def carry_out(vcpu: Vcpu, refused: InternalError, ram: Ram) -> Outcome:
    """Carry out the instruction at ``vcpu``'s rip, or inject the fault that it causes.

    RefusedInstruction if pykvm does not know it.
    """
    regs, sregs = vcpu.regs, vcpu.sregs
    view = GuestView(ram, sregs)
    code = refused.instruction or view.instruction(regs.rip)
    if not sregs.efer & _EFER_LMA or not sregs.cs.l:
        raise RefusedInstruction(code, regs.rip, "is not 64-bit code")
    if sregs.cs.dpl:
        raise RefusedInstruction(code, regs.rip, "is no kernel code")
    state = State(
        gpr=[getattr(regs, name) for name in _GPR],
        rip=regs.rip,
        rflags=regs.rflags,
        cr0=sregs.cr0,
        fs_base=sregs.fs.base,
        gs_base=sregs.gs.base,
    )
    try:
        result = emulate(code, state, view)
    except GuestAddressError:
        raise RefusedInstruction(code, regs.rip, "accesses no RAM") from None
    if result is None:
        raise RefusedInstruction(code, regs.rip)
    _store(regs, state)
    vcpu.changed(c.KVM_SYNC_X86_REGS)
    if isinstance(result, Fault):
        inject(vcpu, result)
        return Outcome.DONE
    if result is Outcome.TO_USER:
        _enter_user_mode(vcpu)
    return result


def _store(regs: "Regs", state: State) -> None:
    for name, value in zip(_GPR, state.gpr, strict=True):
        setattr(regs, name, value)
    regs.rip, regs.rflags = state.rip, state.rflags


def _enter_user_mode(vcpu: Vcpu) -> None:
    """Load CS and SS as SYSRET to 64-bit mode does (SDM volume 2, SYSRET)."""
    base = vcpu.get_msrs((MSR_STAR,))[MSR_STAR] >> 48
    sregs = vcpu.sregs
    load_code(sregs.cs, (base + 16) | 3, dpl=3)
    load_data(sregs.ss, (base + 8) | 3, dpl=3)
    vcpu.changed(c.KVM_SYNC_X86_SREGS)
