"""The whole disk behind its PCI function: registers, doorbells, rings, interrupts; no guest.

What QEMU's own tests do with its virtio-blk-pci (docs/reference/features.md has the list).
"""

from collections.abc import Iterator
from pathlib import Path
from select import select
from struct import pack
from threading import Event
from typing import Any

import pytest
from blk_device import (
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    SECTORS,
    SIZE,
    block_device,
    device_threads,
    disk_file,
)
from blk_ranges import DISCARD, ZEROES, segments
from patience import PATIENCE, until
from virtio_pci_guest import DEVICE, DRIVER_OK, ISR, NOTIFY, READY, Guest

from pykvm.devices.virtio_blk import Image
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_MQ
from pykvm.testing.fake_pci_services import FakeLine, FakePciServices
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
)

"""Seconds after which an interrupt that was to come has not."""
SPARING = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
CONFIG_VECTOR, QUEUE_VECTOR = 0, 1
TEXT = b"TEST".ljust(512, b"\0")


class Line(FakeLine):
    """One whose rise can be waited for."""

    def __init__(self, gsi: int) -> None:
        super().__init__(gsi)
        self.rose = Event()

    def set(self, level: bool) -> None:
        super().set(level)
        if level:
            self.rose.set()


class TellingServices(FakePciServices):
    """With lines of that kind."""

    def interrupt_line(self, device: int, pin: int) -> FakeLine:
        gsi = super().interrupt_line(device, pin).gsi
        self.lines[gsi] = Line(gsi)
        return self.lines[gsi]


class Driver:
    """Drives the disk at ``path``, with INTx or with MSI-X, split or packed."""

    def __init__(self, path: Path, packed: bool, msix: bool, **options: Any) -> None:
        self.msix = msix
        self.device = block_device(Image(path), packed=packed, **options)
        self.guest = Guest(services=TellingServices(), device=self.device)

    def start(self, without: int = 0) -> None:
        """All that is offered, but for ``without``; then DRIVER_OK."""
        features = (self.device.features | VIRTIO_F_VERSION_1) & ~without
        guest = self.guest
        if self.msix:
            guest.use_msix()
        guest.negotiate(features)
        if self.msix:
            guest.set(0x10, 2, CONFIG_VECTOR)
            guest.set(0x16, 2, 0)
            guest.set(0x1A, 2, QUEUE_VECTOR)
        kind = PackedDriver if features & VIRTIO_F_RING_PACKED else SplitDriver
        self.ring = kind(guest.ram, size=16, features=features, heap=0x4000)
        guest.place(0, self.ring.desc, self.ring.avail, self.ring.used, 16)
        guest.status = READY | DRIVER_OK

    def send(self, readable: list[bytes], writable: list[int], indirect: bool | None = None) -> int:
        """Add a request and notify, if that is wanted; its head."""
        head = self.ring.send(readable, writable, indirect=indirect)
        if self.ring.publish():
            self.guest.set(0, 2, 0, NOTIFY)
        return head

    def wait(self, head: int) -> bytes:
        """The device's answer to ``head``, the only request in flight, after its interrupt."""
        self.await_interrupt(QUEUE_VECTOR)
        ((used, _),) = self.ring.collect()
        assert used == head
        self.ring.enable_interrupts()
        return self.ring.response(head)

    def do(self, *request: object) -> bytes:
        return self.wait(self.send(*request))  # type: ignore[arg-type]

    def await_interrupt(self, vector: int) -> None:
        """Until that of ``vector``, and no other, has come; INTx names it in the ISR status."""
        if self.msix:
            expected = self.guest.vectors[vector]
            assert select([expected.eventfd], [], [], PATIENCE)[0]
            assert expected.delivered() == (0xFEE00000, 0x40 + vector)
        else:
            assert self.guest.line.rose.wait(PATIENCE)
            self.guest.line.rose.clear()
            assert self.guest.get(0, 1, ISR) == (2 if vector == CONFIG_VECTOR else 1)
            assert not self.guest.line.level
        assert not self.interrupted()

    def interrupted(self) -> bool:
        """Has there been an interrupt that was not awaited?"""
        by_message = [bool(vector.delivered()) for vector in self.guest.vectors]
        return any(by_message) or self.guest.line.rose.is_set()

    @property
    def capacity(self) -> int:
        return self.guest.get(0, 8, DEVICE)


def header(kind: int, sector: int = 0) -> bytes:
    return pack("<IIQ", kind, 0, sector)


@pytest.fixture(params=["intx", "msix"])
def driver(tmp_path: Path, request: pytest.FixtureRequest, packed: bool) -> Iterator[Driver]:
    made = Driver(disk_file(tmp_path), packed, request.param == "msix")
    yield made
    made.guest.host.close()
    assert device_threads() == []


def test_each_kind_of_request(driver: Driver) -> None:
    """Header, data and status apart, and as few descriptors as there can be."""
    driver.start(without=SPARING)
    assert driver.capacity == SECTORS
    assert driver.do([header(OUT), TEXT], [1])[-1] == OK
    assert driver.do([header(IN)], [512, 1]) == TEXT + bytes([OK])
    assert driver.do([header(OUT, 1) + TEXT], [1])[-1] == OK
    assert driver.do([header(IN, 1)], [513]) == TEXT + bytes([OK])
    assert driver.do([header(ZEROES), segments((0, 1))], [1])[-1] == OK
    assert driver.do([header(IN)], [1024, 1]) == bytes(512) + TEXT + bytes([OK])
    assert driver.do([header(DISCARD), segments((0, 1))], [1])[-1] == OK
    assert driver.do([header(FLUSH)], [1])[-1] == OK


def test_tables_of_descriptors(driver: Driver) -> None:
    driver.start(without=VIRTIO_F_EVENT_IDX)
    assert driver.do([header(OUT) + TEXT], [1], True)[-1] == OK
    assert driver.do([header(IN)], [513], True) == TEXT + bytes([OK])
    assert driver.do([header(IN)], [100, 412, 1], True) == TEXT + bytes([OK])


def test_the_driver_hears_of_a_changed_size(driver: Driver) -> None:
    driver.start()
    generation = driver.guest.get(0x15, 1)
    assert driver.do([header(OUT, SECTORS), TEXT], [1])[-1] == IOERR
    driver.device.resize(2 * SIZE)
    driver.await_interrupt(CONFIG_VECTOR)
    assert driver.guest.get(0x15, 1) != generation
    assert driver.capacity == 2 * SECTORS
    assert driver.do([header(OUT, 2 * SECTORS - 1), TEXT], [1])[-1] == OK
    driver.device.pause()
    driver.device.resize(SIZE // 2)
    driver.device.resume()
    driver.await_interrupt(CONFIG_VECTOR)
    assert driver.capacity == SECTORS // 2
    assert driver.do([header(IN, SECTORS // 2)], [512, 1])[-1] == IOERR


def test_a_driver_that_has_not_started_hears_nothing(driver: Driver) -> None:
    driver.guest.negotiate()
    driver.device.resize(2 * SIZE)
    assert not driver.interrupted()
    assert driver.capacity == 2 * SECTORS


def test_one_interrupt_for_two_requests_with_event_idx(driver: Driver) -> None:
    driver.start()  # with tables, so that a request takes one descriptor in either format
    assert driver.do([header(OUT), TEXT], [1])[-1] == OK
    driver.ring.enable_interrupts(after=1)
    first = driver.send([header(OUT, 1), TEXT], [1])
    await_status(driver, first)
    driver.device.pause()  # all work after an answer is done
    driver.device.resume()
    assert not driver.interrupted()
    second = driver.send([header(IN, 1)], [512, 1])
    driver.await_interrupt(QUEUE_VECTOR)
    assert [head for head, _ in driver.ring.collect()] == [first, second]
    assert driver.ring.response(second) == TEXT + bytes([OK])


def await_status(driver: Driver, head: int) -> None:
    """Until ``head`` has its status byte, without an interrupt that would tell."""
    ram, status = driver.guest.ram, driver.ring.outstanding[head][-1]
    until(lambda: ram.read(status.address + status.length - 1, 1) != b"\xaa")


def test_queues_that_do_not_exist(driver: Driver) -> None:
    driver.guest.negotiate()
    for status in (READY, READY | DRIVER_OK):
        for queue in (1, 2, 64, 0xFFFF):
            driver.guest.place(queue, 0x1000, 0x2000, 0x3000, 8)
            driver.guest.set(4 * min(queue, 64), 2, queue, NOTIFY)
        driver.guest.status = status
    assert driver.guest.status == READY | DRIVER_OK
    driver.guest.status = 0
    driver.start()
    assert driver.do([header(OUT), TEXT], [1])[-1] == OK


@pytest.fixture
def two_queues(tmp_path: Path, packed: bool) -> Iterator[Driver]:
    made = Driver(disk_file(tmp_path), packed, msix=False, num_queues=2)
    yield made
    made.guest.host.close()


def test_without_multiqueue_there_is_one_queue(two_queues: Driver) -> None:
    """§5.2.2: N is 1 if VIRTIO_BLK_F_MQ is not negotiated."""
    guest = two_queues.guest
    guest.place(1, 0x1000, 0x2000, 0x3000, 8)  # too early to be wrong
    assert guest.get(0x1C, 2) == 1
    two_queues.start(without=VIRTIO_BLK_F_MQ)
    guest.set(0x16, 2, 1)
    assert [guest.get(offset, 2) for offset in (0x18, 0x1C, 0x1E)] == [0, 0, 0]
    assert [guest.get(offset, 4) for offset in (0x20, 0x28, 0x30)] == [0, 0, 0]
    assert two_queues.do([header(OUT), TEXT], [1])[-1] == OK
    guest.status = 0
    guest.set(0x16, 2, 1)
    assert guest.get(0x18, 2) > 0
