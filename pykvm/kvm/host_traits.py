"""The answer of the probe (:mod:`pykvm.kvm.probe`): how this host's KVM treats guests."""

from pykvm.lean.records import record
from pykvm.lean.typing_names import Final

SLOW_MIPS: Final = 30.0
"""A lower speed shows that CPL 0 is emulated: emulation reaches 4, any processor hundreds."""


@record
class HostTraits:
    """How this host's KVM treats guests. The defaults are those of an ordinary host."""

    syscall_works: bool = True
    """SYSCALL from CPL 3 in 64-bit mode arrives at CPL 0."""
    cpuid_masked: bool = True
    """The guest sees the CPUID that KVM_SET_CPUID2 gave it."""
    instructions_complete: bool = True
    """Kernel code may use any instruction (FWAIT was tried)."""
    cpl0_mips: float | None = None
    """Million instructions per second at CPL 0, roughly; None if not measured."""

    @property
    def slow_cpl0(self) -> bool:
        """Kernel code is emulated one instruction at a time."""
        return self.cpl0_mips is not None and self.cpl0_mips < SLOW_MIPS

    @property
    def needs_assists(self) -> bool:
        """True if Linux runs only with the help of :class:`pykvm.kvm.assist.Assist`."""
        return bool(self.reasons)

    @property
    def reasons(self) -> list[str]:
        """Why assists are needed, one phrase each; empty on an ordinary host."""
        found = []
        if not self.syscall_works:
            found.append("SYSCALL does not reach the guest's kernel")
        if not self.instructions_complete:
            found.append("KVM refuses instructions that kernels use")
        if not self.cpuid_masked:
            found.append("CPUID shows features that KVM cannot provide")
        return found
