"""A virtio-pci function on a host that runs out of something leaves nothing open."""

import errno
import os

import pytest
from virtio_pci_guest import DRIVER_OK, NOTIFY, READY, FakeDevice, Guest

from pykvm.errors import HostError, UsageError
from pykvm.kvm.errors import KvmError
from pykvm.memory.ram import Ram
from pykvm.pci.config import PciFunction
from pykvm.pci.host import PciHost
from pykvm.pci.virtio_pci import VirtioPci
from pykvm.testing.fake_pci_services import FakePciServices, FakeVector
from pykvm.virtio.constants import VIRTIO_CONFIG_S_NEEDS_RESET


class PoorPlatform(FakePciServices):
    """Has two vectors and no more."""

    def msi_vector(self) -> FakeVector:
        if len(self.vectors) == 2:
            raise HostError("no vectors left")
        return super().msi_vector()


def test_a_function_whose_creation_fails_leaves_nothing_open() -> None:
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
        VirtioPci(FakeDevice(), Ram.flat(4096), FakePciServices())
    assert os.listdir("/proc/self/fd") == before


def test_a_full_bus_closes_the_function_that_it_refuses() -> None:
    services = FakePciServices()
    host = PciHost(services.mmio)
    for _ in range(31):
        host.add(PciFunction(vendor=1, device=2, class_code=0))
    before = os.listdir("/proc/self/fd")
    device = FakeDevice()
    with pytest.raises(UsageError):
        host.add(VirtioPci(device, Ram.flat(4096), services))
    assert device.closed
    assert os.listdir("/proc/self/fd") == before


class Crowded(FakePciServices):
    """Takes ``room`` doorbells and no more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def bind_doorbell(self, address: int, length: int, eventfd: int) -> None:
        if len(self.doorbells) == self.room:
            raise KvmError("KVM_IOEVENTFD", errno.ENOSPC)
        super().bind_doorbell(address, length, eventfd)


@pytest.mark.parametrize("room", [0, 1])
def test_without_a_doorbell_a_notification_is_an_ordinary_write(room: int) -> None:
    guest = Guest(services=Crowded(room))
    for _ in range(2):
        guest.start()
        assert len(guest.services.doorbells) == room
        for queue in range(2):
            guest.set(4 * queue, 2, queue, NOTIFY)
            assert guest.kicked(queue)
        guest.status = 0
        assert guest.services.doorbells == {}
    guest.host.close()


def test_an_interrupt_that_the_host_cannot_route_makes_the_device_need_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def poor(address: int, data: int) -> None:
        raise KvmError("KVM_SET_GSI_ROUTING", errno.ENOMEM)

    guest = Guest()
    says = "KVM_SET_GSI_ROUTING failed: Cannot allocate memory (ENOMEM)"
    for again in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(guest.vectors[1], "route", poor)
            guest.start()
            guest.use_msix()
        assert guest.status & VIRTIO_CONFIG_S_NEEDS_RESET
        assert guest.device.lacked == [says] * (again + 1)
        assert guest.function.state.reason == f"the host cannot serve the device: {says}"
        assert guest.services.doorbells == {}
        guest.status = 0
        guest.set_config(guest.caps[0x1100][0] + 2, 2, 0)
    guest.host.close()


def test_a_device_that_needs_a_reset_before_it_is_started_serves_nothing() -> None:
    guest = Guest()
    guest.negotiate()
    guest.function.state.lacks("memory")
    guest.status = READY | DRIVER_OK
    assert guest.status & VIRTIO_CONFIG_S_NEEDS_RESET
    assert guest.device.activation is None
    guest.host.close()
