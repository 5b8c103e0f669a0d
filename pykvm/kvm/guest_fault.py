"""Exceptions to raise in the guest, as values; and how one is injected into a vCPU."""

from pykvm.kvm.constants import KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_SREGS
from pykvm.lean.records import record
from pykvm.lean.typing_names import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pykvm.kvm.vcpu import Vcpu

DB_VECTOR: Final = 1
BP_VECTOR: Final = 3
UD_VECTOR: Final = 6
NM_VECTOR: Final = 7
GP_VECTOR: Final = 13
PF_VECTOR: Final = 14


@record
class Fault:
    """An exception to raise in the guest. ``address`` is the new CR2, for #PF only."""

    vector: int
    error_code: int | None = None
    address: int | None = None


class GuestFault(Exception):
    """A memory access of the guest failed; the guest gets ``fault``."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def inject(vcpu: "Vcpu", fault: Fault) -> None:
    """Have ``vcpu`` take ``fault`` before its next instruction."""
    if fault.address is not None:
        vcpu.sregs.cr2 = fault.address
        vcpu.changed(KVM_SYNC_X86_SREGS)
    exception = vcpu.events.exception
    exception.injected = 1
    exception.pending = 0
    exception.nr = fault.vector
    exception.has_error_code = fault.error_code is not None
    exception.error_code = fault.error_code or 0
    vcpu.changed(KVM_SYNC_X86_EVENTS)
