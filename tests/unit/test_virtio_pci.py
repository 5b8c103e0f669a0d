"""virtio-pci as a driver sees it: through port I/O and MMIO, and nothing else."""

import errno
import os
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
    PCI_CFG,
    READY,
    VERSION_HI,
    FakeDevice,
    Guest,
)

from pykvm.errors import HostError, UsageError
from pykvm.memory.ram import Ram
from pykvm.pci.config import PciFunction
from pykvm.pci.host import PciHost
from pykvm.pci.virtio_pci import VirtioPci
from pykvm.testing.mock_platform import MockPlatform, MockVector
from pykvm.virtio.constants import VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.host.close()
    assert guest.device.closed
    assert not guest.platform.doorbells


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
    platform, device = MockPlatform(), FakeDevice()
    device.config = b""
    function = VirtioPci(device, Ram.flat(4096), platform)
    kinds, at = [], function.config.get(0x34, 1)
    while at:
        kinds.append(function.config.get(at + 3, 1) if function.config.get(at, 1) == 9 else 0)
        at = function.config.get(at + 1, 1)
    assert sorted(kinds) == [0, 1, 2, 3, 5]
    function.close()


# -- status and features ------------------------------------------------------------


def test_features_come_in_two_windows(guest: Guest) -> None:
    guest.set(0x00, 4, 0)
    assert guest.get(0x04, 4) == guest.device.features
    guest.set(0x00, 4, 1)
    assert guest.get(0x04, 4) == VERSION_HI
    guest.set(0x00, 4, 2)
    assert guest.get(0x04, 4) == 0
    guest.set(0x00, 4, 0xFFFFFFFF)
    assert guest.get(0x04, 4) == 0


def test_a_driver_gets_what_it_accepted(guest: Guest) -> None:
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


def test_reset_brings_everything_back(guest: Guest) -> None:
    guest.start()
    guest.use_msix()
    guest.set(0x10, 2, 0)
    guest.set(0x1A, 2, 1)
    guest.status = 0
    assert guest.device.activation is None
    assert guest.status == 0
    assert not guest.platform.doorbells
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
    assert guest.platform.load(guest.msix_base + 2048, 4) == 1  # the pending bit
    activation.config_changed()
    guest.status = 0
    assert guest.platform.load(guest.msix_base + 2048, 4) == 0
    guest.platform.store(guest.msix_base + 12, 4, 0)
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


def test_a_queue_that_does_not_exist_reads_0(guest: Guest) -> None:
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
    assert not guest.platform.doorbells
    guest.status = 0
    guest.start()


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


def test_device_configuration_is_the_devices(guest: Guest) -> None:
    assert guest.get(4, 4, DEVICE) == 0x07060504
    assert guest.get(0, 8, DEVICE) == 0x0706050403020100
    guest.set(32, 1, 0xEE, DEVICE)
    assert guest.device.config[32] == 0xEE


@pytest.mark.parametrize(("offset", "size"), [(60, 1), (58, 4), (0xFFC, 4), (56, 8)])
def test_past_the_end_of_it_is_nothing(guest: Guest, offset: int, size: int) -> None:
    assert guest.get(offset, size, DEVICE) == 0
    before = guest.device.config
    guest.set(offset, size, 0, DEVICE)
    assert guest.device.config == before


def test_a_change_interrupts(guest: Guest) -> None:
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


# -- interrupts ------------------------------------------------------------------------


def test_intx_rises_with_the_isr_and_falls_with_its_reading(guest: Guest) -> None:
    activation = guest.start()
    activation.interrupt(1)
    assert guest.line.edges == 1
    assert guest.config(6, 2) & 8
    activation.config_changed()
    assert guest.get(0, 1, ISR) == 3
    assert not guest.line.level
    assert not guest.config(6, 2) & 8
    assert guest.get(0, 1, ISR) == 0
    activation.interrupt(0)
    assert guest.line.edges == 2
    guest.status = 0  # reset lowers it as well
    assert not guest.line.level


def test_intx_can_be_disabled_in_the_command_register(guest: Guest) -> None:
    activation = guest.start()
    guest.set_config(4, 2, 0x402)
    activation.interrupt(0)
    assert not guest.line.level
    assert guest.config(6, 2) & 8
    guest.set_config(4, 2, 0x002)
    assert guest.line.level


def test_msix_delivers_each_event_to_its_vector_without_isr_or_line(guest: Guest) -> None:
    guest.use_msix()
    guest.set(0x10, 2, 0)
    for queue in (0, 1):
        guest.set(0x16, 2, queue)
        guest.set(0x1A, 2, 1 + queue)
        assert guest.get(0x1A, 2) == 1 + queue
    activation = guest.start()
    exits = guest.platform.exits
    activation.interrupt(0)
    activation.interrupt(1)
    activation.config_changed()
    assert guest.platform.exits == exits
    assert [vector.delivered() for vector in guest.vectors] == [
        (0xFEE00000, 0x40 + index) for index in range(3)
    ]
    assert guest.get(0, 1, ISR) == 0
    assert guest.line.edges == 0


@pytest.mark.parametrize("vector", [3, 100, NO_VECTOR])
def test_vectors_that_do_not_exist_become_no_vector(guest: Guest, vector: int) -> None:
    guest.use_msix()
    guest.set(0x10, 2, vector)
    guest.set(0x1A, 2, vector)
    assert guest.get(0x10, 2) == guest.get(0x1A, 2) == NO_VECTOR
    activation = guest.start()
    activation.interrupt(0)
    activation.config_changed()
    assert not any(v.delivered() for v in guest.vectors)
    assert guest.line.edges == 0


def test_enabling_msix_lowers_the_line(guest: Guest) -> None:
    activation = guest.start()
    activation.interrupt(0)
    assert guest.line.edges == 1
    guest.use_msix()
    assert not guest.line.level


# -- notifications ---------------------------------------------------------------------


def test_doorbells_exist_while_active_and_cause_no_exit(guest: Guest) -> None:
    assert not guest.platform.doorbells
    guest.start()
    base = guest.address(NOTIFY)
    assert set(guest.platform.doorbells) == {(base, 0), (base + 4, 0)}
    guest.set(0x16, 2, 1)
    offset = guest.get(0x1E, 2) * 4
    exits = guest.platform.exits
    guest.platform.store(base + offset, 2, 1)
    assert guest.platform.exits == exits
    assert guest.kicked(1)
    assert not guest.kicked(0)


def test_doorbells_follow_the_bar(guest: Guest) -> None:
    guest.start()
    guest.set_config(0x10, 4, 0xD000_0000)
    assert {at for at, _ in guest.platform.doorbells} == {0xD000_3000, 0xD000_3004}
    guest.set_config(4, 2, 0)
    assert not guest.platform.doorbells
    guest.set_config(4, 2, 2)
    guest.platform.store(0xD000_3000, 2, 0)
    assert guest.kicked(0)
    guest.set_config(0x10, 4, 0xFFFFFFFF)
    assert not guest.platform.doorbells
    guest.set_config(0x10, 4, 0x1000)  # over RAM
    assert not guest.platform.doorbells


def test_two_functions_that_fight_for_a_place_never_share_a_doorbell(guest: Guest) -> None:
    other = Guest(guest.host, guest.platform)
    guest.start()
    other.start()
    home = guest.config(0x10)
    theirs = other.config(0x10)
    guest.set_config(0x10, 4, theirs)  # the lower device number wins
    assert {at for at, _ in guest.platform.doorbells} == {theirs + 0x3000, theirs + 0x3004}
    assert guest.platform.doorbells[theirs + 0x3000, 0] == guest.kick(0)
    guest.set_config(0x10, 4, home)
    assert len(guest.platform.doorbells) == 4
    assert guest.platform.doorbells[theirs + 0x3000, 0] == other.kick(0)


def test_a_notification_that_exits_still_arrives(guest: Guest) -> None:
    guest.start()
    at = guest.address(NOTIFY)
    guest.platform.mmio.write(at + 4, 4, 1)
    assert guest.kicked(1)
    guest.platform.mmio.write(at + 2, 1, 0)
    assert guest.kicked(0)
    guest.platform.mmio.write(at + 8, 2, 2)  # no such queue
    assert not guest.kicked(0)
    assert guest.get(0, 2, NOTIFY) == 0


def test_a_kick_before_driver_ok_or_after_reset_is_dropped(guest: Guest) -> None:
    guest.negotiate()
    guest.set(0, 2, 0, NOTIFY)
    guest.start()
    assert not guest.kicked(0)
    guest.status = 0
    guest.set(0, 2, 0, NOTIFY)
    guest.drivers.clear()
    guest.start()
    assert not guest.kicked(0)


# -- a host that runs out of something -----------------------------------------------------


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


# -- the PCI-cfg window ------------------------------------------------------------------


def window(guest: Guest, bar: int, offset: int, length: int) -> int:
    at = guest.caps[PCI_CFG][0]
    guest.set_config(at + 4, 1, bar)
    guest.set_config(at + 8, 4, offset)
    guest.set_config(at + 12, 4, length)
    return at + 16


def test_the_window_reads_and_writes_the_bar(guest: Guest) -> None:
    data = window(guest, 0, guest.caps[DEVICE][2] + 4, 4)
    assert guest.config(data) == 0x07060504
    data = window(guest, 0, guest.caps[COMMON][2] + 0x14, 1)
    guest.set_config(data, 1, ACKNOWLEDGE)
    assert guest.status == ACKNOWLEDGE
    assert guest.config(data, 1) == ACKNOWLEDGE
    data = window(guest, 1, 12, 4)
    assert guest.config(data) == 1  # the MSI-X table


def test_a_whole_driver_can_work_through_the_window(guest: Guest) -> None:
    guest.start()
    data = window(guest, 0, guest.caps[NOTIFY][2] + 4, 2)
    guest.set_config(data, 2, 1)
    assert guest.kicked(1)
    data = window(guest, 0, guest.caps[COMMON][2] + 0x14, 1)
    guest.set_config(data, 1, 0)
    assert guest.status == 0


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [
        (0, 0x14, 0), (0, 0x14, 3), (0, 0x14, 8), (0, 0x15, 2), (0, 0x4000, 4), (0, 0x3FFF, 4),
        (0, 0xFFFFFFFC, 4), (2, 0, 4), (6, 0, 4), (255, 0, 4), (1, 0xFFFFFFFF, 1),
        (0, 0x14, 0xFFFFFFFF),
    ],
)  # fmt: skip
def test_a_senseless_window_does_nothing(guest: Guest, bar: int, offset: int, length: int) -> None:
    data = window(guest, bar, offset, length)
    guest.set_config(data, 4, 0xFFFFFFFF)
    guest.config(data)
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
