"""Ring features that the transport has a part in: RING_PACKED, RING_RESET, NOTIFICATION_DATA."""

from collections.abc import Iterator

import pytest
from virtio_pci_guest import (
    DRIVER_OK,
    ISR,
    NEEDS_RESET,
    NO_VECTOR,
    NOTIFY,
    READY,
    Guest,
    plugged_in,
)

from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import (
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
)
from pykvm.virtio.packed import PackedQueue
from pykvm.virtio.split import SplitQueue

QUEUE_RESET = 0x3A


@pytest.fixture
def guest() -> Iterator[Guest]:
    with plugged_in() as made:
        yield made


def start(guest: Guest, features: int) -> None:
    """Both queues, where drivers of 8 descriptors are."""
    guest.negotiate(features | VIRTIO_F_VERSION_1)
    for queue in (0, 1):
        place(guest, queue, features)
    guest.status = READY | DRIVER_OK


def place(guest: Guest, queue: int, features: int, size: int = 8) -> None:
    kind = PackedDriver if features & VIRTIO_F_RING_PACKED else SplitDriver
    base = 0x1000 + 0x4000 * queue
    driver = kind(guest.ram, size=size, features=features, base=base, heap=0x1000)
    guest.drivers[queue:] = [driver]
    guest.place(queue, driver.desc, driver.avail, driver.used, size)


# -- RING_PACKED ----------------------------------------------------------------


def test_a_packed_queue_works_from_its_registers_on(guest: Guest) -> None:
    start(guest, VIRTIO_F_RING_PACKED)
    assert guest.device.activation
    queue = guest.device.activation.queues[1]
    assert isinstance(queue, PackedQueue)
    driver = guest.drivers[1]
    sent = driver.send([b"abc"], [4])
    driver.publish()
    queue.begin_drain()
    head = queue.pop()
    assert queue.chains[head].readable_bytes == 3
    queue.push(head, 4)
    assert queue.publish()
    assert driver.collect() == [(sent, 4)]


@pytest.mark.parametrize(("features", "size"), [(0, 8), (VIRTIO_F_RING_PACKED, 5)])
def test_only_a_packed_queue_takes_any_size(guest: Guest, features: int, size: int) -> None:
    guest.negotiate(features | VIRTIO_F_VERSION_1)
    guest.set(0x16, 2, 1)
    guest.set(0x18, 2, 5)
    guest.set(0x18, 2, 9)
    guest.set(0x18, 2, 0)
    assert guest.get(0x18, 2) == size


def test_a_packed_ring_that_is_impossible_needs_a_reset(guest: Guest) -> None:
    guest.negotiate(VIRTIO_F_RING_PACKED | VIRTIO_F_VERSION_1)
    guest.place(0, 0x1000, 0x2002, 0x3000)
    guest.status = READY | DRIVER_OK
    assert guest.status == READY | DRIVER_OK | NEEDS_RESET
    assert "driver event suppression" in guest.function.state.reason


# -- RING_RESET -----------------------------------------------------------------


@pytest.mark.parametrize("features", [VIRTIO_F_RING_RESET, 1 << 34 | VIRTIO_F_RING_RESET])
def test_a_queue_is_reset_and_gets_a_new_ring(guest: Guest, features: int) -> None:
    guest.use_msix()
    start(guest, features)
    guest.set(0x16, 2, 1)
    guest.set(0x1A, 2, 2)
    guest.set(QUEUE_RESET, 2, 1)
    assert guest.device.stopped == [1]
    assert guest.get(QUEUE_RESET, 2) == 0  # §4.1.4.3.1: it is done
    assert guest.get(0x1C, 2) == 0
    assert guest.get(0x18, 2) == 8
    assert guest.get(0x1A, 2) == NO_VECTOR
    assert [guest.get(at, 8) for at in (0x20, 0x28, 0x30)] == [0, 0, 0]
    assert guest.device.started == []
    place(guest, 1, features, 4)
    (queue,) = guest.device.started
    assert isinstance(queue, PackedQueue if features & VIRTIO_F_RING_PACKED else SplitQueue)
    assert (queue.size, queue.index) == (4, 1)
    guest.set(0x18, 2, 8)  # enabled, so nothing of it can be written
    assert guest.get(0x18, 2) == 4
    guest.set(QUEUE_RESET, 2, 1)
    assert guest.device.stopped == [1, 1]
    assert guest.get(0x1C, 2) == 0


def test_the_reset_of_a_queue_does_not_affect_the_other(guest: Guest) -> None:
    start(guest, VIRTIO_F_RING_RESET)
    guest.set(0x16, 2, 0)
    guest.set(QUEUE_RESET, 2, 1)
    guest.set(0x16, 2, 1)
    assert guest.get(0x1C, 2) == 1
    guest.place(1, 0, 0, 0)
    assert guest.device.started == []
    assert guest.device.resets == 0


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_only_a_write_of_1_resets_a_queue(guest: Guest, value: int) -> None:
    start(guest, VIRTIO_F_RING_RESET)
    guest.set(QUEUE_RESET, 2, value)
    assert guest.get(0x1C, 2) == 1
    assert guest.device.stopped == []


def test_without_the_feature_no_queue_is_reset(guest: Guest) -> None:
    start(guest, 0)
    guest.set(QUEUE_RESET, 2, 1)
    assert guest.get(0x1C, 2) == 1
    assert guest.device.stopped == []


def test_a_disabled_or_missing_queue_is_not_reset(guest: Guest) -> None:
    guest.negotiate(VIRTIO_F_RING_RESET | VIRTIO_F_VERSION_1)
    place(guest, 0, 0)
    guest.status = READY | DRIVER_OK
    for queue in (1, 2, 0xFFFF):
        guest.set(0x16, 2, queue)
        guest.set(QUEUE_RESET, 2, 1)
    assert guest.device.stopped == []
    place(guest, 1, 0)
    assert guest.device.started == []


def test_before_driver_ok_a_queue_is_only_disabled(guest: Guest) -> None:
    guest.negotiate(VIRTIO_F_RING_RESET | VIRTIO_F_VERSION_1)
    place(guest, 0, 0)
    guest.set(QUEUE_RESET, 2, 1)
    assert guest.device.stopped == []
    assert guest.get(0x1C, 2) == 0
    guest.status = READY | DRIVER_OK
    assert guest.device.activation
    assert guest.device.activation.queues == [None, None]
    place(guest, 0, 0)
    assert guest.device.started == []


def test_an_impossible_ring_after_a_reset_needs_a_reset_of_the_device(guest: Guest) -> None:
    start(guest, VIRTIO_F_RING_RESET)
    guest.set(0x16, 2, 0)
    guest.set(QUEUE_RESET, 2, 1)
    guest.place(0, 0x1008, 0x2000, 0x3000)
    assert guest.status & NEEDS_RESET
    assert guest.get(0, 1, ISR) == 2
    assert guest.device.started == []
    guest.status = 0
    start(guest, 0)
    assert guest.device.activation


# -- NOTIFICATION_DATA ------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
def test_the_value_of_a_notification_does_not_matter(guest: Guest, size: int) -> None:
    start(guest, VIRTIO_F_NOTIFICATION_DATA)
    base, exits = guest.address(NOTIFY), guest.services.exits
    guest.services.store(base + 4, size, 0x8005_0001)
    assert guest.services.exits == exits
    assert guest.kicked(1)
    assert not guest.kicked(0)
    guest.function.write(0x3004, size, 0x8005_0001)  # through PCI-cfg
    assert guest.kicked(1)
