"""The help that a guest needs on a KVM that works without hardware virtualization.

Such a KVM (PVM, for one) runs the guest's user mode on the processor and its kernel
mode in KVM's instruction emulator. :class:`Assist` mends two faults of such a KVM from
outside, without a change to the guest:

- SYSCALL does not reach the guest's kernel (:mod:`pykvm.kvm.syscall_delivery`);
- the emulator refuses instructions (:mod:`pykvm.kvm.refused`).

It also has advice for Linux (:mod:`pykvm.kvm.linux_options`). Ordinary hosts never load
these modules.
"""

from collections.abc import Iterable

from pykvm.kvm import constants as c
from pykvm.kvm.breakpoints import may_hide_breakpoint
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.emulate import Outcome
from pykvm.kvm.exits import Debug, Exit, InternalError, MsrWrite
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.linux_options import linux_options, without_hypercalls
from pykvm.kvm.refused import carry_out
from pykvm.kvm.syscall_delivery import SyscallDelivery
from pykvm.kvm.vcpu import Vcpu
from pykvm.kvm.vm import Vm
from pykvm.memory.ram import Ram


class Assist:
    """Helps the guest of one VM. Useless on an ordinary host.

    Give :meth:`handle` every exit before anything else sees it, in the thread
    of its vCPU. Call :meth:`prepare` once per vCPU before its first run, and
    each time after its state has been replaced.
    """

    def __init__(self, traits: HostTraits, vm: Vm, ram: Ram) -> None:
        """Set up ``vm``, best before it has anything else; MissingCapability."""
        self._ram = ram
        if vm.check_extension(c.KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0:
            vm.enable_cap(c.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
        self._syscalls = None if traits.syscall_works else SyscallDelivery(vm, ram)

    def command_line(self, tsc_khz: int) -> list[str]:
        """Options for a Linux guest. ``tsc_khz``: the result of KVM_GET_TSC_KHZ."""
        return linux_options(tsc_khz)

    def cpuid(self, leaves: Iterable[CpuidEntry]) -> list[CpuidEntry]:
        """The CPUID for a vCPU that would otherwise show ``leaves``."""
        return without_hypercalls(leaves)

    @property
    def system_calls(self) -> int:
        """The number of system calls that exits delivered, on all vCPUs."""
        return self._syscalls.count if self._syscalls else 0

    def prepare(self, vcpu: Vcpu) -> None:
        """Take over the system-call MSRs and the interrupt table of ``vcpu``."""
        if self._syscalls:
            self._syscalls.prepare(vcpu)

    def can_stop(self, vcpu: Vcpu) -> bool:
        """Whether all of the state of ``vcpu`` can be read now. If not, let it run a little more.

        Its last exit is complete.
        """
        return not may_hide_breakpoint(vcpu, self._ram)

    def handle(self, vcpu: Vcpu, reason: Exit) -> bool:
        """Deal with ``reason`` if it is one of the assist's: True, run the vCPU again.

        RefusedInstruction if the guest cannot continue.
        """
        syscalls = self._syscalls
        if isinstance(reason, InternalError):
            if reason.suberror != c.KVM_INTERNAL_ERROR_EMULATION:
                return False
            outcome = carry_out(vcpu, reason, self._ram)
            if outcome is Outcome.TO_USER and syscalls:
                syscalls.return_by_iret(vcpu)
            return True
        if syscalls is None:
            return False
        if isinstance(reason, Debug):
            syscalls.debug(vcpu, reason)
            return True
        if isinstance(reason, MsrWrite):
            return syscalls.msr_write(vcpu, reason)
        syscalls.look_again(vcpu)
        return False
