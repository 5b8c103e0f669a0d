"""A virtio-pci function on a host that runs out of something leaves nothing open."""

import errno
import os

import pytest
from virtio_pci_guest import FakeDevice

from pykvm.errors import HostError, UsageError
from pykvm.memory.ram import Ram
from pykvm.pci.config import PciFunction
from pykvm.pci.host import PciHost
from pykvm.pci.virtio_pci import VirtioPci
from pykvm.testing.mock_platform import MockPlatform, MockVector


class PoorPlatform(MockPlatform):
    """Has two vectors and no more."""

    def msi_vector(self) -> MockVector:
        if len(self.vectors) == 2:
            raise HostError("no vectors left")
        return super().msi_vector()


def test_a_function_that_cannot_be_made_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    device = FakeDevice()
    with pytest.raises(HostError):
        VirtioPci(device, Ram.flat(4096), PoorPlatform())
    assert os.listdir("/proc/self/fd") == before
    assert not device.closed  # it is the caller's still


def test_without_eventfds_there_is_no_function(monkeypatch: pytest.MonkeyPatch) -> None:
    before, eventfd, made = os.listdir("/proc/self/fd"), os.eventfd, []

    def few(*args: int) -> int:
        if len(made) == 4:
            raise OSError(errno.EMFILE, "too many open files")
        made.append(eventfd(*args))
        return made[-1]

    monkeypatch.setattr(os, "eventfd", few)
    with pytest.raises(OSError, match="too many"):
        VirtioPci(FakeDevice(), Ram.flat(4096), MockPlatform())
    assert os.listdir("/proc/self/fd") == before


def test_a_bus_that_is_full_closes_what_it_refuses() -> None:
    platform = MockPlatform()
    host = PciHost(platform.mmio)
    for _ in range(31):
        host.add(PciFunction(vendor=1, device=2, class_code=0))
    before = os.listdir("/proc/self/fd")
    device = FakeDevice()
    with pytest.raises(UsageError):
        host.add(VirtioPci(device, Ram.flat(4096), platform))
    assert device.closed
    assert os.listdir("/proc/self/fd") == before
