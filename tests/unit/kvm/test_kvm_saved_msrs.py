"""MSRs of a snapshot: those that are written although they have their value."""

from struct import Struct

import pytest

from pykvm.kvm.constants import MSR_KVM_ASYNC_PF_EN, MSR_STAR
from pykvm.kvm.snapshot import _load_msrs

MSR = Struct("<IIQ")


class FakeVcpu:
    """A vCPU with MSRs; ``written`` are those that were set."""

    def __init__(self, msrs: dict[int, int]) -> None:
        self.msrs = msrs
        self.written: list[tuple[int, int]] = []

    def renewed_msrs(self, saved: bytes) -> bytes:
        return b"".join(MSR.pack(index, 0, value) for index, value in self.msrs.items())

    def set_msr_list(self, wanted: list[tuple[int, int]]) -> None:
        self.written += wanted


@pytest.mark.parametrize("pages", [0, 1 << 12 | 9])
def test_a_vcpu_that_is_put_back_wakes_tasks_that_wait_for_pages(pages: int):
    """At a reset in place the MSR has its value already, and only a write wakes them."""
    vcpu = FakeVcpu({MSR_KVM_ASYNC_PF_EN: pages, MSR_STAR: 5})
    saved = vcpu.renewed_msrs(b"")
    _load_msrs(vcpu, saved, 0)  # type: ignore[arg-type]
    assert vcpu.written == ([(MSR_KVM_ASYNC_PF_EN, pages)] if pages else [])
    vcpu.written.clear()
    vcpu.msrs[MSR_KVM_ASYNC_PF_EN] = 1
    _load_msrs(vcpu, saved, 0)  # type: ignore[arg-type]
    assert vcpu.written == [(MSR_KVM_ASYNC_PF_EN, pages)]
