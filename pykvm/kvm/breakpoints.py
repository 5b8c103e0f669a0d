"""Tells if a vCPU may have a breakpoint exception that KVM does not report.

INT3 advances RIP, and then its exception is delivered. A vCPU can be stopped in between. KVM never
reports such an exception (KVM_GET_VCPU_EVENTS): on a processor that delivers it as a part of INT3,
RIP stays at the INT3, which is executed again. A KVM that emulates kernel code sees a program's
INT3 when RIP has advanced, and pykvm carries out a kernel's. A snapshot from that moment would lack
the exception, and the guest would go on behind an INT3 that never happened.
"""

from pykvm.kvm.guest_fault import GuestFault
from pykvm.kvm.paging import GuestView
from pykvm.kvm.vcpu import Vcpu
from pykvm.lean.typing_names import Final
from pykvm.memory.ram import GuestAddressError, Ram

_BP_VECTOR: Final = 3
_INT3: Final = b"\xcc"


def may_hide_breakpoint(vcpu: Vcpu, ram: Ram) -> bool:
    """The last exception of ``vcpu`` was a breakpoint, and it is behind an INT3.

    Either the exception waits, or its handler has just returned.
    """
    if vcpu.events.exception.nr != _BP_VECTOR:
        return False
    try:
        return GuestView(ram, vcpu.sregs).read(vcpu.regs.rip - 1, 1) == _INT3
    except (GuestFault, GuestAddressError):
        return False
