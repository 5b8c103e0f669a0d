"""virtio-pci as a driver sees it: through port I/O and MMIO, and nothing else."""

from collections.abc import Iterator

import pytest
from virtio_pci_guest import (
    ACKNOWLEDGE,
    COMMON,
    DEVICE,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    ISR,
    NEEDS_RESET,
    NO_VECTOR,
    NOTIFY,
    ONE_QUEUE,
    READY,
    VERSION_HI,
    FakeDevice,
    Guest,
    plugged_in,
)

from pykvm.memory.ram import Ram
from pykvm.pci.virtio_pci import VirtioPci
from pykvm.testing.fake_pci_services import FakePciServices
from pykvm.virtio.constants import VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1


@pytest.fixture
def guest() -> Iterator[Guest]:
    with plugged_in() as guest:
        yield guest


# -- discovery ------------------------------------------------------------------


def test_identification(guest: Guest) -> None:
    assert guest.config(0) == 0x10421AF4
    assert guest.config(8) == 0x01800001
    assert guest.config(0x2C) == 0x10421AF4
    assert guest.config(0x3C, 2) == 0x0100 | guest.line.gsi
    assert set(guest.caps) == {1, 2, 3, 4, 5, 0x1100}
    at, _, offset, length = guest.caps[NOTIFY]
    assert guest.config(at + 2, 1) == 20
    assert guest.config(at + 16) == 4
    assert offset % 4096 == 0
    assert length == 8
    assert guest.caps[DEVICE][3] == 60
    assert guest.caps[COMMON][3] >= 56
    assert guest.get(0x12, 2) == 2


def test_a_device_without_configuration_has_no_device_capability() -> None:
    services, device = FakePciServices(), FakeDevice()
    device.config = b""
    function = VirtioPci(device, Ram.flat(4096), services)
    kinds, at = [], function.config.get(0x34, 1)
    while at:
        kinds.append(function.config.get(at + 3, 1) if function.config.get(at, 1) == 9 else 0)
        at = function.config.get(at + 1, 1)
    assert sorted(kinds) == [0, 1, 2, 3, 5]
    function.close()


# -- status and features ------------------------------------------------------------


def test_features_come_in_two_windows(guest: Guest) -> None:
    guest.set(0x00, 4, 0)
    assert guest.get(0x04, 4) == guest.device.features & 0xFFFFFFFF
    guest.set(0x00, 4, 1)
    assert guest.get(0x04, 4) == guest.device.features >> 32 | VERSION_HI
    guest.set(0x00, 4, 2)
    assert guest.get(0x04, 4) == 0
    guest.set(0x00, 4, 0xFFFFFFFF)
    assert guest.get(0x04, 4) == 0


def test_a_driver_gets_the_accepted_features(guest: Guest) -> None:
    activation = guest.start()
    assert guest.status == READY | DRIVER_OK
    assert activation.features == VIRTIO_F_VERSION_1
    assert [q.size for q in activation.queues if q] == [8, 8]
    assert activation.ram is guest.ram


@pytest.mark.parametrize(
    "features", [0, 1, VIRTIO_F_VERSION_1 | 1, VIRTIO_F_VERSION_1 | 1 << 63, VIRTIO_F_EVENT_IDX]
)
def test_features_ok_is_withheld(guest: Guest, features: int) -> None:
    guest.negotiate(features)
    assert guest.status == ACKNOWLEDGE | DRIVER
    assert guest.function.state.reason
    guest.status = READY | DRIVER_OK
    assert not guest.status & DRIVER_OK
    assert guest.device.activation is None
    guest.accept(VIRTIO_F_VERSION_1)  # a driver may try again
    guest.status = READY
    assert guest.status == READY


def test_a_device_may_refuse_a_combination(guest: Guest) -> None:
    guest.device.picky = True
    guest.negotiate()
    assert not guest.status & FEATURES_OK


def test_features_are_fixed_once_agreed(guest: Guest) -> None:
    guest.negotiate()
    guest.accept(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)
    guest.set(0x08, 4, 0)
    assert guest.get(0x0C, 4) == 0


def test_status_bits_are_only_gained(guest: Guest) -> None:
    guest.negotiate()
    guest.status = ACKNOWLEDGE
    assert guest.status == READY
    guest.status = NEEDS_RESET | 16 | 32
    assert guest.status == READY
    guest.status = FAILED
    assert guest.status == READY | FAILED


def test_bits_out_of_order_are_ignored(guest: Guest) -> None:
    guest.status = DRIVER_OK
    assert guest.status == 0
    guest.status = DRIVER
    assert guest.status == 0
    guest.accept(VIRTIO_F_VERSION_1)
    guest.status = READY | DRIVER_OK  # all at once is in order
    assert guest.status == READY | DRIVER_OK


def test_reset_restores_every_register(guest: Guest) -> None:
    guest.start()
    guest.use_msix()
    guest.set(0x10, 2, 0)
    guest.set(0x1A, 2, 1)
    guest.status = 0
    assert guest.device.activation is None
    assert guest.status == 0
    assert not guest.services.doorbells
    assert guest.get(0x10, 2) == NO_VECTOR
    guest.set(0x16, 2, 0)
    assert guest.get(0x18, 2) == 16
    assert [guest.get(offset, 4) for offset in range(0x20, 0x38, 4)] == [0] * 6
    assert guest.get(0x1C, 2) == 0
    assert guest.get(0x1A, 2) == NO_VECTOR
    guest.drivers.clear()
    guest.start()


def test_no_interrupt_survives_a_reset(guest: Guest) -> None:
    guest.use_msix(masked=True)
    guest.set(0x10, 2, 0)
    activation = guest.start()
    activation.config_changed()
    assert guest.services.load(guest.msix_base + 2048, 4) == 1  # the pending bit
    activation.config_changed()
    guest.status = 0
    assert guest.services.load(guest.msix_base + 2048, 4) == 0
    guest.services.store(guest.msix_base + 12, 4, 0)
    assert guest.vectors[0].delivered() is None
    assert guest.function.msix.enabled  # PCI's own state is none of virtio's business


# -- queues ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 3, 12, 32, 0xFFFF])
def test_an_impossible_queue_size_is_ignored(guest: Guest, value: int) -> None:
    guest.negotiate()
    guest.set(0x18, 2, value)
    assert guest.get(0x18, 2) == 16
    guest.set(0x18, 2, 4)
    assert guest.get(0x18, 2) == 4


def test_a_missing_queue_reads_0(guest: Guest) -> None:
    guest.negotiate()
    for queue in (2, 0xFFFF):
        guest.place(queue, 0x1000, 0x2000, 0x3000, 8)
        assert guest.get(0x16, 2) == queue
        assert [guest.get(offset, 2) for offset in range(0x18, 0x20, 2)] == [0] * 4
        assert [guest.get(offset, 4) for offset in range(0x20, 0x38, 4)] == [0] * 6


def test_an_enabled_queue_cannot_be_changed(guest: Guest) -> None:
    guest.negotiate()
    guest.place(0, 0x1000, 0x2000, 0x3000, 8)
    guest.place(0, 0x5000, 0x6000, 0x7000, 4)
    guest.set(0x1C, 2, 0)
    assert (guest.get(0x18, 2), guest.get(0x1C, 2)) == (8, 1)
    assert [guest.get(at, 4) for at in (0x20, 0x28, 0x30)] == [0x1000, 0x2000, 0x3000]


def test_nothing_is_enabled_after_driver_ok(guest: Guest) -> None:
    activation = guest.start(queues=1)
    assert activation.queues[1] is None
    guest.place(1, 0x5000, 0x6000, 0x7000, 4)
    assert guest.get(0x1C, 2) == 0
    assert guest.get(0x18, 2) == 8


@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [(0x1008, 0x2000, 0x3000), (0x1000, 0x2001, 0x3000), (0x1000, 0x2000, 1 << 40), (0, 0, 0xFFFC)],
)
def test_impossible_rings_need_a_reset(guest: Guest, desc: int, avail: int, used: int) -> None:
    guest.negotiate()
    guest.place(0, desc, avail, used)
    guest.status = READY | DRIVER_OK
    assert guest.status == READY | DRIVER_OK | NEEDS_RESET
    assert "queue 0" in guest.function.state.reason
    assert guest.get(0, 1, ISR) == 2  # and the driver is told (§2.1.2)
    assert guest.device.activation is None
    assert not guest.services.doorbells
    guest.status = 0
    guest.start()


def test_queues_that_the_features_leave_out_are_none(guest: Guest) -> None:
    guest.place(1, 0x1000, 0x2000, 0x3000, 8)
    guest.negotiate(VIRTIO_F_VERSION_1 | ONE_QUEUE)
    for _ in range(2):
        guest.set(0x16, 2, 1)
        assert [guest.get(offset, 2) for offset in (0x18, 0x1C, 0x20)] == [0, 0, 0]
        guest.place(1, 0x1000, 0x2000, 0x3000, 8)
    guest.place(0, 0x1000, 0x2000, 0x3000, 8)
    guest.status = READY | DRIVER_OK
    assert guest.status == READY | DRIVER_OK
    assert guest.device.serving == {0}
    guest.status = 0
    guest.set(0x16, 2, 1)
    assert guest.get(0x18, 2) == 8


def test_64_bit_fields_take_halves_and_wholes(guest: Guest) -> None:
    guest.negotiate()
    guest.set(0x20, 8, 0x1122334455667788)
    assert guest.get(0x20, 4) == 0x55667788
    assert guest.get(0x24, 4) == 0x11223344
    guest.set(0x24, 4, 0xAABBCCDD)
    assert guest.get(0x20, 8) == 0xAABBCCDD55667788


def test_wrong_widths_and_places_read_0_and_write_nothing(guest: Guest) -> None:
    guest.negotiate()
    fields = {
        (0, 4), (4, 4), (8, 4), (0xC, 4), (0x10, 2), (0x12, 2), (0x14, 1), (0x15, 1), (0x16, 2),
        (0x18, 2), (0x1A, 2), (0x1C, 2), (0x1E, 2), (0x20, 8), (0x28, 8), (0x30, 8),
        *((at, 4) for at in range(0x20, 0x38, 4)),
    }  # fmt: skip
    before = {field: guest.get(*field) for field in fields}
    for offset in [*range(0x44), 0xFF8, 0xFFF]:
        for size in (1, 2, 4, 8):
            if (offset, size) not in fields:
                guest.set(offset, size, 0)
                guest.set(offset, size, (1 << 8 * size) - 1)
                if offset + size <= 0x1000:
                    assert guest.get(offset, size) == 0, (offset, size)
    assert {field: guest.get(*field) for field in fields} == before


# -- configuration space of the device ----------------------------------------------


def test_the_device_provides_its_configuration(guest: Guest) -> None:
    assert guest.get(4, 4, DEVICE) == 0x07060504
    assert guest.get(0, 8, DEVICE) == 0x0706050403020100
    guest.set(32, 1, 0xEE, DEVICE)
    assert guest.device.config[32] == 0xEE


@pytest.mark.parametrize(("offset", "size"), [(60, 1), (58, 4), (0xFFC, 4), (56, 8)])
def test_the_configuration_reads_0_past_its_end(guest: Guest, offset: int, size: int) -> None:
    assert guest.get(offset, size, DEVICE) == 0
    before = guest.device.config
    guest.set(offset, size, 0, DEVICE)
    assert guest.device.config == before


def test_a_configuration_change_interrupts(guest: Guest) -> None:
    activation = guest.start()
    activation.config_changed()
    assert guest.get(0, 1, ISR) == 2


def test_a_torn_read_shows_in_the_generation(guest: Guest) -> None:
    before = guest.get(0x15, 1)
    assert guest.get(0, 4, DEVICE) == 0x03020100
    assert guest.get(0x15, 1) == before
    guest.device.config = bytes(60)  # and the device has not told anybody yet
    assert guest.get(4, 4, DEVICE) == 0
    assert guest.get(0x15, 1) != before


def test_the_generation_wraps(guest: Guest) -> None:
    seen = set()
    for number in range(257):
        guest.device.config = bytes([number & 0xFF]) * 60
        seen.add(guest.get(0x15, 1))
    assert seen == set(range(256))


def test_a_broken_ring_sets_needs_reset(guest: Guest) -> None:
    activation = guest.start()
    activation.broken("avail.idx is nonsense")
    assert guest.status == READY | DRIVER_OK | NEEDS_RESET
    assert guest.get(0, 1, ISR) == 2
    guest.status = 0
    assert guest.status == 0


# -- hostile sweeps -----------------------------------------------------------------------


def test_every_register_survives_every_width_and_value(guest: Guest) -> None:
    guest.start()
    size = guest.function.bars[0].size
    offsets = [*range(0x80), *range(0x1000, 0x1010), *range(0x2000, 0x2048), 0x3000, size - 1]
    for offset in offsets:
        for width in (1, 2, 4, 8):
            for value in (0xA5A5A5A5A5A5A5A5, 0):
                guest.function.write(offset, width, value & (1 << 8 * width) - 1)
                assert 0 <= guest.function.read(offset, width) < 1 << 64


def test_configuration_space_survives_all_ones_and_zeroes(guest: Guest) -> None:
    for value in (0xFFFFFFFF, 0, 0xA5A5A5A5):
        for register in range(0, 256, 4):
            guest.set_config(register, 4, value)
            guest.config(register)
    assert guest.config(0) == 0x10421AF4


def test_a_whole_request_round_trip(guest: Guest) -> None:
    activation = guest.start()
    driver, queue = guest.drivers[0], activation.queues[0]
    assert queue
    head = driver.send([b"hello"], [8])
    if driver.publish():
        guest.set(0, 2, 0, NOTIFY)
    assert guest.kicked(0)
    queue.begin_drain()
    assert queue.pop() == head
    offset = queue.chains[head].offsets[1]
    guest.ram.bytes[offset : offset + 5] = b"HELLO"
    queue.push(head, 5)
    if queue.publish():
        activation.interrupt(0)
    assert guest.get(0, 1, ISR) == 1
    assert driver.collect() == [(head, 5)]
    assert driver.response(head)[:5] == b"HELLO"


def test_a_function_on_the_same_place_takes_over_when_the_first_is_unplugged() -> None:
    first = Guest()
    second = Guest(host=first.host, services=first.services)
    first.start()
    second.start()
    place = first.config(0x10)
    second.set_config(0x10, 4, place)  # the lower number wins
    assert second.function.bars[0].address is None
    first.host.remove(first.number)
    assert first.device.closed
    assert second.function.bars[0].address == place
    assert {address for address, _ in first.services.doorbells} == {place + 0x3000, place + 0x3004}
    first.host.close()
    assert not first.services.doorbells
