"""A whole disk behind PCI, without a guest, KVM or threads, for hostile drivers.

::

    with Rig(DiskOptions(packed=True)) as rig:
        driver = rig.start(features)           # as an honest driver begins
        rig.ram.write(address, anything)       # and whatever else one may do
        rig.write(offset, size, value)         # BAR 0
        rig.serve()                            # what the device does of it
        rig.works()                            # a reset, and an honest driver's requests

Each method raises AssertionError when the device did what it must not:

- an exception leaves the device, whatever the driver does;
- a byte of memory that is not guest RAM is written, or gets onto the disk;
- something that was taken from a ring is neither given back nor kept for a
  stopped machine, or is given back twice;
- one look at the rings has the device do more than its queue holds, or keep
  more memory than its longest chain needs;
- the disk changes its size, or something beyond its end is touched;
- after a reset, an honest driver finds a device that does not work.
"""

import mmap
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import pack
from types import TracebackType
from typing import Self

from pykvm.bus import Bus
from pykvm.devices.virtio_blk.constants import (
    SECTOR_SIZE,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.ranges import MAX_RANGES
from pykvm.devices.virtio_blk.device import VirtioBlk
from pykvm.devices.virtio_blk.engines.base import Engine
from pykvm.devices.virtio_blk.hooks import DeviceHooks
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.memory.ram import Ram, Region
from pykvm.pci.host import CONFIG_PORT, CONFIG_PORTS, PciHost
from pykvm.pci.virtio_pci import NOTIFY, NOTIFY_MULTIPLIER, VirtioPci
from pykvm.testing.fake_pci_services import FakePciServices
from pykvm.testing.inline_threads import InlineThreads, InspectingEngine
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_RING_PACKED,
)
from pykvm.virtio.fence import queue_fence

SECTORS = 64
LOW, HIGH = 0x8000, 0x6000
"""Bytes of guest RAM: at address 0, and at HIGH_START."""
HIGH_START = 0x1_0000_0000
QUEUE_SIZE = 16
_BLOCK = 4096
"""Bytes of the requests that must work: whole blocks, whatever size these have."""
DRIVERS_QUEUE = 8
"""Descriptors in each of an honest driver's queues."""
GUARD = bytes.fromhex("c7a14e92d05b836f1978e2b4fd0c6a35") * 16
"""What stands between the regions of RAM, and gets nowhere."""

_LIMIT = 2 * (1026 + QUEUE_SIZE)
"""Segments that a chain has room for at most: it grows by doubling."""
_STATUS = 0x14
_STEPS = (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
)


class Rig:
    """Owns the disk (a memfd of SECTORS sectors), the device, the bus and guest RAM.

    ``function`` is the device on PCI, ``number`` its place there, ``ports``
    and ``pci_services.mmio`` the buses, ``drivers`` the honest driver's queues
    since the last :meth:`start`. Of ``errors``, each operation that is
    executed takes one: an errno, or 0, or the bytes that it moves at most as a
    negative number; those of ``meanwhile`` are called when
    the device next moves data.
    """

    def __init__(self, options: DiskOptions) -> None:
        """``options``: queue_size is at most QUEUE_SIZE."""
        assert options.queue_size <= QUEUE_SIZE, "the checks count on it"
        self.buffer = bytearray(GUARD + bytes(LOW) + GUARD + bytes(HIGH) + GUARD)
        low, high = len(GUARD), 2 * len(GUARD) + LOW
        self.ram = Ram(self.buffer, [Region(0, LOW, low), Region(HIGH_START, HIGH, high)])
        self._guards = [slice(at, at + len(GUARD)) for at in (0, low + LOW, high + HIGH)]
        self.pci_services = FakePciServices()
        self.ports = Bus()
        self.host = PciHost(self.pci_services.mmio, decode_start=LOW)
        self.ports.add(CONFIG_PORT, CONFIG_PORTS, self.host)
        self.drivers: list[SplitDriver | PackedDriver] = []
        self.errors: deque[int] = deque()
        self.meanwhile: list[Callable[[], None]] = []
        self._engines: list[InspectingEngine] = []
        self._fd = os.memfd_create("pykvm-rig", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, SECTORS * SECTOR_SIZE)
        self.device = VirtioBlk(
            Image(f"/proc/self/fd/{self._fd}"),
            options,
            engine=self._engine,
            threads=InlineThreads,
            hooks=DeviceHooks(on_failure=self._failed),
        )
        assert isinstance(self.device._threads, InlineThreads)
        self._inline = self.device._threads
        self.function = VirtioPci(self.device, self.ram, self.pci_services)
        self.number = self.host.add(self.function)
        self._bars = [self.function.bar_register(bar) for bar in self.function.bars]

    # -- what the device is made of ------------------------------------------

    def _engine(self, image: Image, ram: Ram) -> Engine:
        self._engines.append(InspectingEngine(image, ram, self._interfere))
        return self._engines[-1]

    def _interfere(self) -> int:
        while self.meanwhile:
            self.meanwhile.pop()()
        return self.errors.popleft() if self.errors else 0

    def _failed(self, error: BaseException) -> None:
        raise error

    # -- what a driver does ----------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """BAR 0, wherever it is."""
        value = self.function.read(offset, size)
        assert 0 <= value < 1 << 8 * size, "a value is as wide as the access"
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """BAR 0, wherever it is; a notification is a write like any other."""
        self.function.write(offset, size, value & (1 << 8 * size) - 1)

    def config(self, register: int, size: int, value: int | None = None) -> int:
        """Configuration space of the disk, by mechanism 1; a write if there is a ``value``."""
        address = 1 << 31 | self.number << 11 | register & 0xFC
        self.ports.write(CONFIG_PORT, 4, address)
        port = CONFIG_PORT + 4 + (register & 3)
        if value is not None:
            self.ports.write(port, size, value & (1 << 8 * size) - 1)
            return 0
        return self.ports.read(port, size)

    def reset(self) -> None:
        """Write 0 to the device status."""
        self.write(_STATUS, 1, 0)

    def start(self, features: int, queues: int | None = None) -> SplitDriver | PackedDriver:
        """Reset, and bring the device to life with new rings; queue 0's driver.

        ``features``: what of it is offered is accepted. ``queues`` None: all.
        """
        self.config(0x04, 2, 6)
        self.reset()
        state = self.function.state
        features &= state.offered
        for step, bit in enumerate(_STEPS[:-1]):
            if bit == VIRTIO_CONFIG_S_FEATURES_OK:
                for half in (0, 1):
                    self.write(0x08, 4, half)
                    self.write(0x0C, 4, features >> 32 * half)
            self.write(_STATUS, 1, sum(_STEPS[: step + 1]))
        self.drivers.clear()
        count = len(state.queues) if queues is None else queues
        for index in range(count):
            self.drivers.append(self.place(index))
        self.write(_STATUS, 1, sum(_STEPS))
        return self.drivers[0]

    def place(self, index: int) -> SplitDriver | PackedDriver:
        """A driver for queue ``index``, whose rings the device is told of."""
        features = self.function.state.driver_features
        kind = PackedDriver if features & VIRTIO_F_RING_PACKED else SplitDriver
        share = 0x2000
        driver = kind(
            self.ram,
            size=DRIVERS_QUEUE,
            features=features,
            base=0x1000 + index * share,
            heap=share - 0x200,
            fence=queue_fence(),
        )
        for offset, size, value in (
            (0x16, 2, index),
            (0x18, 2, driver.size),
            (0x20, 8, driver.desc),
            (0x28, 8, driver.avail),
            (0x30, 8, driver.used),
            (0x1C, 2, 1),
        ):
            self.write(offset, size, value)
        return driver

    def notify(self, queue: int = 0) -> None:
        """Write to the queue's notification address."""
        self.write(NOTIFY + NOTIFY_MULTIPLIER * queue, 2, queue)

    # -- what the device does, and must not -------------------------------------

    @property
    def services(self) -> Sequence[QueueService]:
        """The queues that are served."""
        return self._inline.services

    def serve(self) -> None:
        """Let the device look at its rings once, and at what it did."""
        before = sum(engine.operations for engine in self._engines)
        self._inline.serve()
        done = sum(engine.operations for engine in self._engines) - before
        # A request is an operation, or one for each range; merged ones that fail have two each.
        limit = len(self.function.state.queues) * QUEUE_SIZE * 2 * (MAX_RANGES + 1)
        assert done <= limit, f"{done} operations for a look at the rings"
        self.check()

    def check(self) -> None:
        """AssertionError if something is as it must not be."""
        for place in self._guards:
            assert self.buffer[place] == GUARD, "memory that is not guest RAM was written"
        served = [service.queue.index for service in self.services]
        assert len(set(served)) == len(served), "a queue is served once"
        for service in self.services:
            queue = service.queue
            assert service.idle, "the engine is done"
            assert service.halted or not queue.in_flight, f"{queue.in_flight} requests are lost"
            assert 0 <= queue.in_flight <= queue.size, "no more than there are descriptors"
            for chain in queue.chains:
                assert len(chain.offsets) <= _LIMIT, "memory is bounded"
        state = self.function.state
        assert self.device.failure is None, "no exception leaves the device"
        assert not (self.services and state.status & 64), "a broken device serves nothing"
        intx = self.function.intx
        assert intx is not None
        (line,) = self.pci_services.lines.values()
        assert line.level <= intx.pending, "the line is low unless an interrupt is pending"

    def works(self, features: int) -> None:
        """Put the function right and reset it, as firmware and a driver do: it works."""
        self.errors.clear()
        self.meanwhile.clear()
        self.device.resume()
        for index, address in enumerate(self._bars):
            self.config(0x10 + 4 * index, 4, address)
        self.config(0x04, 2, 6)
        self.reset()
        self.device.resize(SECTORS * SECTOR_SIZE)
        driver = self.start(features)
        assert self.read(_STATUS, 1) == sum(_STEPS), "the device is ready"
        data = bytes(range(256)) * (_BLOCK // 256)
        written = self.request(driver, VIRTIO_BLK_T_OUT, 0, data, 0)
        read = self.request(driver, VIRTIO_BLK_T_IN, 0, b"", len(data))
        assert (written, read) == (bytes([VIRTIO_BLK_S_OK]), data + bytes([VIRTIO_BLK_S_OK]))
        assert os.fstat(self._fd).st_size == SECTORS * SECTOR_SIZE, "the disk keeps its size"
        with mmap.mmap(self._fd, 0) as content:
            assert content.find(GUARD[:16]) < 0, "memory that is not guest RAM was read"

    def request(
        self, driver: SplitDriver | PackedDriver, kind: int, sector: int, data: bytes, size: int
    ) -> bytes:
        """An honest request on queue 0 of a device that serves it: data read, and status."""
        readable = [pack("<IIQ", kind, 0, sector), *([data] if data else [])]
        head = driver.send(readable, [size, 1] if size else [1])
        if driver.publish():
            self.notify()
        self.serve()
        assert [done for done, _ in driver.collect()] == [head], "one answer to one request"
        return driver.response(head)

    def close(self) -> None:
        """Close everything."""
        self.host.close()
        with suppress(OSError):
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
