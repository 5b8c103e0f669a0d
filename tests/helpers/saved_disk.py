"""A disk on a PCI bus, with a driver that goes on when the disk moves to a new machine."""

import errno
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import NamedTuple

from blk_device import FLUSH, IN, OK, OUT, block_device
from blk_ranges import ZEROES, segments
from virtio_pci_guest import DRIVER_OK, NOTIFY, READY, Guest

from pykvm.devices.virtio_blk import Image
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_MQ
from pykvm.devices.virtio_blk.device import VirtioBlk
from pykvm.devices.virtio_blk.modes import ErrorPolicy, Locking
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved
from pykvm.testing.inline_threads import InlineThreads, InspectingEngine
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.ring_driver import RingDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1

SECTOR = 512
SECTORS = 64
RAM = 1 << 17
QUEUE_SIZE = 16


class Sent(NamedTuple):
    """A request without an answer. ``expected`` are the sector's bytes before it."""

    kind: int
    sector: int
    data: bytes
    expected: bytes


class SavedDisk:
    """The disk at ``path``, driven through several queues, in the caller's thread.

    With other ``threads`` among the ``options``, these serve the queues.
    The driver has at most one request for a sector in flight, and checks each answer.
    While ``error`` is not 0, operations fail with it, and the disk halts.
    """

    def __init__(self, path: Path, **options: object) -> None:
        self.path = path
        self._options = options
        self.error = 0
        self.ram = Ram.flat(RAM)
        self.disk = bytearray(path.read_bytes())
        self.guest = self._plug_in()
        self.drivers: list[RingDriver] = []
        self.sent: dict[tuple[int, int], Sent] = {}
        self.order: list[list[int]] = []
        self.answers = 0

    @property
    def device(self) -> VirtioBlk:
        assert isinstance(self.guest.device, VirtioBlk)
        return self.guest.device

    @property
    def threads(self) -> InlineThreads:
        threads = self.device._threads
        assert isinstance(threads, InlineThreads)
        return threads

    def _plug_in(self) -> Guest:
        options: dict[str, object] = {
            "engine": lambda image, ram: InspectingEngine(image, ram, lambda: self.error),
            "threads": InlineThreads,
            "queue_size": QUEUE_SIZE,
            "rerror": ErrorPolicy.STOP,
            "werror": ErrorPolicy.STOP,
            **self._options,
        }
        device = block_device(Image(self.path, locking=Locking.OFF), **options)
        return Guest(device=device, ram=self.ram)

    def start(self, without: int = 0) -> None:
        """Negotiate all that is offered, but for ``without``, and start the queues."""
        guest = self.guest
        features = (self.device.features | VIRTIO_F_VERSION_1) & ~without
        guest.negotiate(features)
        count = len(self.device.queue_sizes) if features & VIRTIO_BLK_F_MQ else 1
        kind: Callable[..., RingDriver]
        kind = PackedDriver if features & VIRTIO_F_RING_PACKED else SplitDriver
        room = (RAM - 0x1000) // count & ~0xFFF
        for queue in range(count):
            driver = kind(
                self.ram,
                size=QUEUE_SIZE,
                features=features,
                base=0x1000 + queue * room,
                heap=room - 0x1000,
            )
            guest.place(queue, driver.desc, driver.avail, driver.used, QUEUE_SIZE)
            self.drivers.append(driver)
            self.order.append([])
        guest.status = READY | DRIVER_OK

    # -- the driver ------------------------------------------------------------

    def send(self, queue: int, kind: int, sector: int, data: bytes = b"") -> bool:
        """Add a request; False if there is no room for it."""
        if kind != FLUSH and any(
            one.kind != FLUSH and one.sector == sector for one in self.sent.values()
        ):
            return False
        header = pack("<IIQ", kind, 0, 0 if kind in (FLUSH, ZEROES) else sector)
        readable = {OUT: [header, data], ZEROES: [header, segments((sector, 1))]}
        try:
            head = self.drivers[queue].send(
                readable.get(kind, [header]), [SECTOR, 1] if kind == IN else [1]
            )
        except (IndexError, MemoryError):
            return False
        expected = bytes(self.disk[SECTOR * sector :][:SECTOR])
        self.sent[queue, head] = Sent(kind, sector, data, expected)
        self.order[queue].append(head)
        return True

    def kick(self, queue: int) -> None:
        """Publish, and notify if the device wants that."""
        if self.drivers[queue].publish():
            self.guest.set(4 * queue, 2, queue, NOTIFY)

    def collect(self) -> None:
        """Check the answers."""
        for queue, driver in enumerate(self.drivers):
            for head, used in driver.collect():
                assert not driver.features >> 35 & 1 or head == self.order[queue][0], "IN_ORDER"
                self.order[queue].remove(head)
                one = self.sent.pop((queue, head))
                answer = driver.response(head)
                assert answer[-1] == OK
                assert used == len(answer)
                if one.kind == IN:
                    assert answer[:-1] == one.expected
                elif one.kind != FLUSH:
                    place = slice(SECTOR * one.sector, SECTOR * (one.sector + 1))
                    self.disk[place] = one.data if one.kind == OUT else bytes(SECTOR)
                self.answers += 1

    def finish(self) -> None:
        """End all faults and limits, and check that every request has its answer."""
        self.error = 0
        for queue in range(len(self.drivers)):
            self.kick(queue)
        while self.sent:
            before = len(self.sent)
            self.device.resume()
            self.threads.serve()
            self.collect()
            assert len(self.sent) < before, "a request is lost"
        assert self.path.read_bytes() == self.disk
        self.close()

    def close(self) -> None:
        """Close the disk. May be repeated."""
        self.guest.host.close()

    # -- snapshots ----------------------------------------------------------------

    def save(self) -> Fields:
        self.device.pause()
        return self.guest.host.save()

    def move(self, fields: Fields) -> None:
        """Go on in a new machine, still paused."""
        old, self.guest = self.guest, self._plug_in()
        self.guest.host.load(Saved("pci", fields))
        # The saved machine ends without a further access to guest RAM or disk.
        ram, disk = bytes(self.ram.bytes), self.path.read_bytes()
        old.host.close()
        assert (bytes(self.ram.bytes), self.path.read_bytes()) == (ram, disk)

    def load(self, fields: Fields) -> None:
        """Go on in place, still paused."""
        self.guest.host.load(Saved("pci", fields))


FULL = errno.ENOSPC
