"""Plays bytes as the steps of a hostile driver.

A script is a sequence of steps. A step is its number in a target's table, then its
fields, little-endian in the format of :mod:`struct`, then with ``*`` a length byte and
that number of bytes. Any bytes are a script: a number counts modulo the table's length, and
missing bytes at the end are 0. So a mutation of a script is mostly the same script with one
changed field.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from struct import Struct, calcsize, pack
from typing import Any, NamedTuple

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.modes import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.errors import UsageError
from pykvm.memory.ram import GuestAddressError
from pykvm.pci.virtio_pci import DEVICE, NOTIFY
from pykvm.testing.hostile_rig import HIGH, HIGH_START, LOW, QUEUE_SIZE, SECTORS, Rig
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_DESC_SIZE,
)

RING_FEATURES = (
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_RESET,
)
BLOCK_FEATURES = (1 << 24) - 1
KINDS = (0, 1, 4, 8, 10, 11, 13, 2, 0x8000_0001, 2**32 - 1)
"""Request types, known and unknown."""
LAST_SECTORS = (SECTORS - 1, SECTORS, 2**55, 2**63, 2**64 - 1)
ERRORS = (0, errno.EIO, errno.ENOSPC, errno.ECANCELED, -512, -1)
"""Items for :attr:`Rig.errors`."""
SIZES = (1, 2, 4, 8)
BASES: tuple[int, ...] = (
    *range(0, LOW, 0x1000),
    HIGH_START,
    HIGH_START + HIGH - 64,
    LOW - 64,
    0xE000_0000,
    2**32 - 64,
    2**63,
    2**64 - 4096,
    0xC000_0000,
)
"""The upper four bits of a place select one; the lower twelve are added."""


class Step(NamedTuple):
    """``fields`` is a format of :mod:`struct`, perhaps with ``*`` at the end."""

    fields: str
    run: Callable[..., None]


class Player:
    """Plays a script's steps on a rig. No step may raise an exception."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.features = VIRTIO_F_VERSION_1

    # -- an honest driver --------------------------------------------------------

    def start(self, ring: int, block: int) -> None:
        """Reset, negotiate and start; the bits of ``ring`` select RING_FEATURES."""
        self.features = VIRTIO_F_VERSION_1 | (BLOCK_FEATURES if block & 1 else 0)
        self.features |= sum(bit for i, bit in enumerate(RING_FEATURES) if ring >> i & 1)
        self.rig.start(self.features)

    def reset(self) -> None:
        """Write 0 to the status."""
        self.rig.reset()

    def request(self, queue: int, kind: int, sector: int, framing: int, data: bytes) -> None:
        """Make a request available, in the pieces that ``framing`` selects."""
        where = sector if sector < 0xF0 else LAST_SECTORS[sector % len(LAST_SECTORS)]
        header = pack("<IIQ", KINDS[kind % len(KINDS)], 0, where)
        cut = framing & 15
        readable = [header[:cut], header[cut:]] if cut else [header]
        size = len(data) * (SECTOR_SIZE if framing & 16 else 1)
        if framing & 32:
            readable.append(bytes(data) * (SECTOR_SIZE if framing & 16 else 1))
            writable = [1]
        else:
            writable = [size, 1] if size else [1]
        if framing & 64:
            writable = [sum(writable)]
        if driver := self._driver(queue):
            with _driver_errors_ignored():
                driver.send([piece for piece in readable if piece], writable)

    def submit(self, queue: int) -> None:
        """Publish. Notify unless bit 7 of ``queue`` is set, even if the device does not want it."""
        if driver := self._driver(queue):
            with _driver_errors_ignored():
                driver.publish()
            if queue < 0x80:
                self.rig.notify(queue % len(self.rig.drivers))

    def collect(self, queue: int) -> None:
        """Take the used heads."""
        if driver := self._driver(queue):
            with _driver_errors_ignored():
                driver.collect()

    def renew(self, queue: int) -> None:
        """Reset a queue and give it new rings (§2.6.1)."""
        if driver := self._driver(queue):
            self.rig.write(0x16, 2, queue % len(self.rig.drivers))
            self.rig.write(0x3A, 2, 1)
            with suppress(GuestAddressError):
                index = self.rig.drivers.index(driver)
                self.rig.drivers[index] = self.rig.place(index)

    # -- a hostile driver ------------------------------------------------------

    def memory(self, place: int, data: bytes) -> None:
        """Write anything to guest RAM."""
        with suppress(GuestAddressError):
            self.rig.ram.write(address(place), data)

    def meanwhile(self, place: int, data: bytes) -> None:
        """The same, while the device moves data."""
        self.rig.meanwhile.append(lambda: self.memory(place, data))

    def descriptor(self, slot: int, place: int, length: int, third: int, fourth: int) -> None:
        """Fill a descriptor; the upper half of ``slot`` is the queue."""
        if driver := self._driver(slot >> 4):
            driver.write_descriptor(slot & 15, address(place), length, third, fourth)

    def offer(self, queue: int, head: int, index: int) -> None:
        """Put any head into the next slot of the ring, and move a split ring on by ``index``."""
        driver = self._driver(queue)
        if isinstance(driver, SplitDriver):
            driver.offer(head)
            driver.avail_index += index
        elif isinstance(driver, PackedDriver):
            driver.offer(address(head), index, head, index)

    def table(self, queue: int, segments: int, length: int, out: int) -> None:
        """Offer an indirect table for a request of many ``segments``, all of the same memory."""
        data = (HIGH_START + HIGH - 512, length, 0 if out & 1 else VIRTQ_DESC_F_WRITE)
        header, status = HIGH_START + HIGH - 1024, HIGH_START + HIGH - 768
        chain = [(header, 16, 0), *[data] * (segments % 1100), (status, 1, VIRTQ_DESC_F_WRITE)]
        size = len(chain) * VIRTQ_DESC_SIZE
        driver = self._driver(queue)
        for index, (place, count, flags) in enumerate(chain):
            more = VIRTQ_DESC_F_NEXT if index + 1 < len(chain) else 0
            split = isinstance(driver, SplitDriver)
            last = (flags | more, index + 1) if split else (0, flags)
            fields = pack("<QIHH", place, count, *last)
            self.rig.ram.write(HIGH_START + index * VIRTQ_DESC_SIZE, fields)
        self.rig.ram.write(header, pack("<IIQ", out & 1, 0, 0))
        if isinstance(driver, SplitDriver):
            driver.write_descriptor(0, HIGH_START, size, VIRTQ_DESC_F_INDIRECT, 0)
            driver.offer(0)
        elif isinstance(driver, PackedDriver):
            driver.offer(HIGH_START, size, 0, VIRTQ_DESC_F_INDIRECT)

    def notify(self, offset: int, size: int, value: int) -> None:
        """Write to the notification structure."""
        self.rig.write(NOTIFY + offset, SIZES[size & 3], value)

    def field(self, offset: int, size: int, value: int) -> None:
        """Write to the common configuration."""
        self.rig.write(offset & 0x3F, SIZES[size & 3], value)

    def ring(self, queue: int, which: int, place: int) -> None:
        """Write a ring's address."""
        self.rig.write(0x16, 2, queue)
        self.rig.write((0x20, 0x28, 0x30)[which % 3], 8, address(place))

    def bar(self, offset: int, size: int, value: int) -> None:
        """Read and write anywhere in BAR 0."""
        self.rig.read(offset & 0x3FFF, SIZES[size & 3])
        self.rig.write(offset & 0x3FFF, SIZES[size & 3], value)

    def cache(self, offset: int, value: int) -> None:
        """Write to the device configuration."""
        self.rig.write(DEVICE + offset, 1, value)

    # -- its PCI function -------------------------------------------------------

    def config(self, register: int, size: int, value: int) -> None:
        """Write configuration space, and read it back."""
        width = SIZES[size % 3]
        self.rig.config(register & -width, width, value)
        assert self.rig.config(register & -width, width) < 1 << 8 * width

    def port(self, port: int, size: int, value: int) -> None:
        """Access any of the ports 0xCF8 to 0xCFF, at any width."""
        width = SIZES[size % 3]
        self.rig.ports.write(0xCF8 + (port & 7), width, value & (1 << 8 * width) - 1)
        assert self.rig.ports.read(0xCF8 + (port & 7), width) < 1 << 8 * width

    def window(self, bar: int, offset: int, length: int, value: int) -> None:
        """Go through the PCI-cfg capability, which is the last one (§4.1.4.9)."""
        at = 0x90
        self.rig.config(at + 4, 1, bar)
        self.rig.config(at + 8, 4, offset)
        self.rig.config(at + 12, 4, length & 15)
        self.rig.config(at + 16, 4, value)
        self.rig.config(at + 16, 4)

    def mmio(self, place: int, size: int, value: int) -> None:
        """Access any address in the PCI window, including doorbells."""
        at, width = 0xE000_0000 + place, SIZES[size & 3]
        self.rig.pci_services.store(at, width, value & (1 << 8 * width) - 1)
        assert self.rig.pci_services.load(at, width) < 1 << 8 * width

    def msix(self, offset: int, size: int, value: int) -> None:
        """Access the MSI-X table and its pending bits."""
        width = SIZES[size & 3]
        self.rig.function.msix.write(offset & 0xFFF, width, value & (1 << 8 * width) - 1)
        assert self.rig.function.msix.read(offset & 0xFFF, width) < 1 << 8 * width

    # -- its host -----------------------------------------------------------------

    def serve(self) -> None:
        """Let the device serve its rings."""
        self.rig.serve()

    def pause(self, which: int) -> None:
        """Stop the machine, or continue it."""
        if which & 1:
            self.rig.device.pause()
        else:
            self.rig.device.resume()
        self.rig.check()

    def resize(self, sectors: int) -> None:
        """Resize the disk, if the size is possible."""
        with suppress(UsageError):
            self.rig.device.resize(sectors * SECTOR_SIZE)

    def errors(self, which: int, count: int) -> None:
        """Make the host fail the next operations."""
        self.rig.errors.extend([ERRORS[which % len(ERRORS)]] * (count & 7))

    def _driver(self, queue: int) -> SplitDriver | PackedDriver | None:
        drivers = self.rig.drivers
        return drivers[queue % len(drivers)] if drivers else None


DISK: dict[str, Step] = {
    "start": Step("BB", Player.start),
    "request": Step("BBBB*", Player.request),
    "submit": Step("B", Player.submit),
    "serve": Step("", Player.serve),
    "collect": Step("B", Player.collect),
    "memory": Step("H*", Player.memory),
    "descriptor": Step("BHIHH", Player.descriptor),
    "offer": Step("BHH", Player.offer),
    "notify": Step("BBH", Player.notify),
    "reset": Step("", Player.reset),
    "renew": Step("B", Player.renew),
    "field": Step("BBI", Player.field),
    "cache": Step("BB", Player.cache),
    "meanwhile": Step("H*", Player.meanwhile),
    "pause": Step("B", Player.pause),
    "resize": Step("B", Player.resize),
    "errors": Step("BB", Player.errors),
    "ring": Step("BBH", Player.ring),
    "table": Step("BHBB", Player.table),
}
"""Rings, requests and the device's life."""

PCI: dict[str, Step] = {
    "start": Step("BB", Player.start),
    "serve": Step("", Player.serve),
    "field": Step("BBI", Player.field),
    "bar": Step("HBQ", Player.bar),
    "config": Step("BBI", Player.config),
    "window": Step("BHBI", Player.window),
    "msix": Step("HBQ", Player.msix),
    "mmio": Step("HBQ", Player.mmio),
    "port": Step("BBI", Player.port),
    "notify": Step("BBH", Player.notify),
    "memory": Step("H*", Player.memory),
    "ring": Step("BBH", Player.ring),
    "request": Step("BBBB*", Player.request),
    "submit": Step("B", Player.submit),
    "reset": Step("", Player.reset),
    "renew": Step("B", Player.renew),
}
"""Registers, configuration space and interrupts."""


def play(steps: dict[str, Step], data: bytes) -> None:
    """Play the script ``data``, whose first two bytes are the disk's options."""
    table = tuple(steps.values())
    rest = memoryview(data)[2:]
    with Rig(options(data[:2].ljust(2, b"\0"))) as rig:
        player = Player(rig)
        while rest:
            step = table[rest[0] % len(table)]
            arguments, rest = _arguments(step.fields, rest[1:])
            step.run(player, *arguments)
        rig.serve()
        rig.works(player.features)


def options(choice: bytes) -> DiskOptions:
    """The disk's options from a script's first two bytes."""
    ring, disk = choice
    return DiskOptions(
        queue_size=QUEUE_SIZE,
        packed=bool(ring & 1),
        in_order=bool(ring & 2),
        notification_data=bool(ring & 4),
        queue_reset=not ring & 8,
        event_idx=not ring & 16,
        indirect_desc=not ring & 32,
        num_queues=2 if ring & 64 else 1,
        merge=list(MergePolicy)[disk & 3],
        werror=list(ErrorPolicy)[disk >> 2 & 3],
        rerror=list(ErrorPolicy)[disk >> 4 & 3],
        logical_block_size=4096 if disk & 64 else 512,
        lifetime=(1, 2, 3) if disk & 128 else None,
    )


def script(steps: dict[str, Step], choice: bytes, *played: tuple[Any, ...]) -> bytes:
    """The script of ``played``: steps as tuples of a name and its fields."""
    names = list(steps)
    made = bytearray(choice)
    for name, *fields in played:
        form = steps[name].fields
        made.append(names.index(name))
        data = bytes(fields.pop()) if form.endswith("*") else b""
        made += pack("<" + form.rstrip("*"), *fields)
        if form.endswith("*"):
            made += bytes([len(data)]) + data
    return bytes(made)


def address(place: int) -> int:
    """The guest-physical address for the 16 bits of ``place``."""
    return BASES[place >> 12] + (place & 0xFFF)


def _arguments(form: str, data: memoryview) -> tuple[Sequence[Any], memoryview]:
    plain = "<" + form.rstrip("*")
    size = calcsize(plain)
    fields = Struct(plain).unpack(bytes(data[:size]).ljust(size, b"\0"))
    data = data[size:]
    if not form.endswith("*"):
        return fields, data
    length = data[0] if data else 0
    return (*fields, bytes(data[1 : 1 + length])), data[1 + length :]


@contextmanager
def _driver_errors_ignored() -> Iterator[None]:
    """Ignore errors of the test driver, which are not the device's."""
    with suppress(AssertionError, LookupError, MemoryError):
        yield
