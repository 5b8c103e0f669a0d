"""Requests with forbidden buffers, through a whole device on PCI."""

from collections.abc import Iterator
from struct import pack

import pytest

from pykvm.devices.virtio_blk import DiskOptions
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.testing.hostile_rig import HIGH_START, LOW, QUEUE_SIZE, Rig
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.ring_driver import Buffer
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import (
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTQ_DESC_F_INDIRECT,
)

Driver = SplitDriver | PackedDriver
FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_RING_PACKED
OK, IOERR = bytes([VIRTIO_BLK_S_OK]), bytes([VIRTIO_BLK_S_IOERR])
DATA = bytes(range(256)) * 2


@pytest.fixture
def rig(packed: bool) -> Iterator[Rig]:
    with Rig(DiskOptions(queue_size=QUEUE_SIZE, packed=packed)) as rig:
        rig.start(FEATURES)
        rig.request(rig.drivers[0], VIRTIO_BLK_T_OUT, 1, DATA, 0)
        yield rig
        rig.works(FEATURES)


def header(driver: Driver, kind: int = VIRTIO_BLK_T_IN, sector: int = 1) -> Buffer:
    return Buffer(driver.put(pack("<IIQ", kind, 0, sector)), 16, False)


def ask(rig: Rig, *chain: Buffer) -> int:
    """Publish a chain and let the device serve it; its head."""
    head = rig.drivers[0].add(chain, indirect=False)
    rig.drivers[0].publish()
    rig.notify()
    rig.serve()
    return head


@pytest.mark.parametrize(
    "place",
    [0xE000_0000, 0xFEE0_0000, 0xC000_0000, LOW - 256, LOW, HIGH_START - 8, 2**63, 2**64 - 512],
    ids=["BAR", "APIC", "hole", "end", "past", "before", "far", "wrap"],
)
def test_data_outside_ram(rig: Rig, place: int) -> None:
    (driver,) = rig.drivers
    status = Buffer(driver.put(b"\xaa"), 1, True)
    head = ask(rig, header(driver), Buffer(place, 512, True), status)
    assert rig.ram.read(status.address, 1) == IOERR
    # The buffer cannot be looked at, but the answer can.
    driver.outstanding[head] = [status]
    assert driver.collect() == [(head, 0)], "the status is behind what was not written"


@pytest.mark.parametrize("area", ["desc", "avail", "used"])
@pytest.mark.parametrize("kind", [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT])
def test_data_in_its_own_rings(rig: Rig, area: str, kind: int) -> None:
    """The memory is the guest's own: its content may be anything, and the device survives that."""
    (driver,) = rig.drivers
    status = Buffer(driver.put(b"\xaa"), 1, True)
    place = getattr(driver, area)
    ask(rig, header(driver, kind), Buffer(place, 512, kind == VIRTIO_BLK_T_IN), status)
    assert rig.ram.read(status.address, 1) == OK
    for _ in range(3):
        rig.notify()
        rig.serve()


def test_a_status_in_its_own_ring(rig: Rig) -> None:
    (driver,) = rig.drivers
    for area in (driver.desc, driver.avail, driver.used):
        ask(rig, header(driver, VIRTIO_BLK_T_GET_ID), Buffer(area, 21, True))
    rig.serve()


def test_a_table_in_its_own_ring(rig: Rig) -> None:
    """A descriptor that names the descriptors as its table, itself among them."""
    (driver,) = rig.drivers
    if isinstance(driver, PackedDriver):
        driver.offer(driver.desc, 16 * driver.size, 0, VIRTQ_DESC_F_INDIRECT)
    else:
        driver.write_descriptor(0, driver.desc, 16 * driver.size, VIRTQ_DESC_F_INDIRECT, 0)
        driver.offer(0)
    driver.publish()
    rig.notify()
    rig.serve()


def test_memory_that_changes_while_it_is_parsed(rig: Rig) -> None:
    """Header and descriptors count as they were when the device read them."""
    (driver,) = rig.drivers
    asked = header(driver)
    data, status = Buffer(driver.alloc(512), 512, True), Buffer(driver.put(b"\xaa"), 1, True)

    def change() -> None:
        rig.ram.write(asked.address, pack("<IIQ", VIRTIO_BLK_T_OUT, 0, 2**63))
        rig.ram.write(driver.desc, b"\xff" * 16 * driver.size)

    rig.meanwhile.append(change)
    ask(rig, asked, data, status)
    assert not rig.meanwhile
    assert rig.ram.read(data.address, 512) == DATA
    assert rig.ram.read(status.address, 1) == OK


def test_addresses_that_were_never_set(rig: Rig) -> None:
    """They are 0, which is RAM: rings of whatever lies there, one over the other."""
    rig.reset()
    for value in (1, 3):
        rig.write(0x14, 1, value)
    rig.write(0x08, 4, 1)
    rig.write(0x0C, 4, FEATURES >> 32 & rig.function.state.offered >> 32)
    rig.write(0x14, 1, 11)
    rig.write(0x1C, 2, 1)
    rig.write(0x14, 1, 15)
    assert rig.function.state.active
    for filling in (b"\0", b"\x01", b"\x80", b"\xff"):
        rig.ram.write(0, filling * 512)
        rig.notify()
        rig.serve()


def test_a_broken_ring_is_reported_and_left_alone(rig: Rig) -> None:
    (driver,) = rig.drivers
    driver.spoil()
    driver.publish()
    rig.notify()
    rig.serve()
    assert rig.read(0x14, 1) & VIRTIO_CONFIG_S_NEEDS_RESET
    assert rig.read(0x1000, 1) & 2  # the configuration interrupt
    used = rig.ram.read(driver.used, 4)
    rig.notify()
    rig.serve()
    assert rig.ram.read(driver.used, 4) == used
