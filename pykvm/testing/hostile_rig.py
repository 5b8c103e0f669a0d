"""A whole disk behind PCI, without a guest, KVM or threads, for hostile drivers.

::

    with Rig(DiskOptions(packed=True)) as rig:
        driver = rig.start(features)           # begin as an honest driver does
        rig.ram.write(address, data)           # then do anything
        rig.write(offset, size, value)         # BAR 0
        rig.serve()                            # the device serves its rings
        rig.works(features)                    # a reset, and an honest driver's requests

Each method raises AssertionError when one of these happened:

- an exception left the device;
- a byte of memory that is not guest RAM was written, or reached the disk;
- a request that was taken from a ring was neither given back nor kept for a stopped
  machine, or it was given back twice;
- in one pass over the rings, the device executed more than its queue can hold, or kept
  more memory than its longest chain needs;
- the disk changed its size, or an operation went beyond its end;
- after a reset, the device did not work for an honest driver.
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
"""Bytes of the requests that must work: a whole block of any size that a disk can have."""
DRIVERS_QUEUE = 8
"""Descriptors in each of an honest driver's queues."""
GUARD = bytes.fromhex("c7a14e92d05b836f1978e2b4fd0c6a35") * 16
"""The bytes between the regions of RAM. They must neither change nor reach the disk."""

_LIMIT = 2 * (1026 + QUEUE_SIZE)
"""The largest room of a chain, in segments. It grows by doubling."""
_STATUS = 0x14
_STEPS = (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
)


class Rig:
    """Owns the disk (a memfd of SECTORS sectors), the device, the bus and guest RAM.

    ``function`` is the device on PCI, ``number`` its device number, ``ports`` and
    ``pci_services.mmio`` the buses, ``drivers`` the honest driver's queues since
    the last :meth:`start`. Each executed operation takes an item of ``errors``:
    an errno, 0 for none, or -n to move n bytes at most. The functions in
    ``meanwhile`` are called when the device next moves data.
    """

    def __init__(self, options: DiskOptions) -> None:
        """``options``: queue_size is at most QUEUE_SIZE."""
        assert options.queue_size <= QUEUE_SIZE, "the checks rely on this size"
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

    # -- parts of the device --------------------------------------------------

    def _engine(self, image: Image, ram: Ram) -> Engine:
        self._engines.append(InspectingEngine(image, ram, self._interfere))
        return self._engines[-1]

    def _interfere(self) -> int:
        while self.meanwhile:
            self.meanwhile.pop()()
        return self.errors.popleft() if self.errors else 0

    def _failed(self, error: BaseException) -> None:
        raise error

    # -- actions of a driver -----------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read BAR 0, at any address of the BAR."""
        value = self.function.read(offset, size)
        assert 0 <= value < 1 << 8 * size, "the value is wider than the access"
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write BAR 0, at any address of the BAR. A notification is such a write."""
        self.function.write(offset, size, value & (1 << 8 * size) - 1)

    def config(self, register: int, size: int, value: int | None = None) -> int:
        """Read the disk's configuration space by mechanism 1, or write ``value`` to it."""
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
        """Reset the device, and start it with new rings; return the driver of queue 0.

        Accepts those of ``features`` that are offered. ``queues`` None: all queues.
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
        """A driver for queue ``index``, with its rings written to the queue's registers."""
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

    # -- the device, and its checks ---------------------------------------------

    @property
    def services(self) -> Sequence[QueueService]:
        """The services of the queues that the device serves."""
        return self._inline.services

    def serve(self) -> None:
        """Let the device make one pass over its rings, and check it."""
        before = sum(engine.operations for engine in self._engines)
        self._inline.serve()
        done = sum(engine.operations for engine in self._engines) - before
        # A request has one operation, or one for each range. A failed merge runs them again.
        limit = len(self.function.state.queues) * QUEUE_SIZE * 2 * (MAX_RANGES + 1)
        assert done <= limit, f"{done} operations in one pass over the rings"
        self.check()

    def check(self) -> None:
        """AssertionError if an invariant of the device does not hold."""
        for place in self._guards:
            assert self.buffer[place] == GUARD, "memory that is not guest RAM was written"
        served = [service.queue.index for service in self.services]
        assert len(set(served)) == len(served), "a queue has two services"
        for service in self.services:
            queue = service.queue
            assert service.idle, "the engine has operations in flight"
            assert service.halted or not queue.in_flight, f"{queue.in_flight} requests are lost"
            assert 0 <= queue.in_flight <= queue.size, "more requests than descriptors"
            for chain in queue.chains:
                assert len(chain.offsets) <= _LIMIT, "a chain keeps too much memory"
        state = self.function.state
        assert self.device.failure is None, "an exception left the device"
        assert not (self.services and state.status & 64), "a broken device still serves its queues"
        intx = self.function.intx
        assert intx is not None
        (line,) = self.pci_services.lines.values()
        assert line.level <= intx.pending, "the line is high without a pending interrupt"

    def works(self, features: int) -> None:
        """Set the function up as firmware does, reset it, and check that it works for a driver."""
        self.errors.clear()
        self.meanwhile.clear()
        self.device.resume()
        for index, address in enumerate(self._bars):
            self.config(0x10 + 4 * index, 4, address)
        self.config(0x04, 2, 6)
        self.reset()
        self.device.resize(SECTORS * SECTOR_SIZE)
        driver = self.start(features)
        assert self.read(_STATUS, 1) == sum(_STEPS), "the device did not reach DRIVER_OK"
        data = bytes(range(256)) * (_BLOCK // 256)
        written = self.request(driver, VIRTIO_BLK_T_OUT, 0, data, 0)
        read = self.request(driver, VIRTIO_BLK_T_IN, 0, b"", len(data))
        assert (written, read) == (bytes([VIRTIO_BLK_S_OK]), data + bytes([VIRTIO_BLK_S_OK]))
        assert os.fstat(self._fd).st_size == SECTORS * SECTOR_SIZE, "the disk changed its size"
        with mmap.mmap(self._fd, 0) as content:
            assert content.find(GUARD[:16]) < 0, "memory that is not guest RAM was read"

    def request(
        self, driver: SplitDriver | PackedDriver, kind: int, sector: int, data: bytes, size: int
    ) -> bytes:
        """Make an honest request on queue 0; return the data read, and the status byte."""
        readable = [pack("<IIQ", kind, 0, sector), *([data] if data else [])]
        head = driver.send(readable, [size, 1] if size else [1])
        if driver.publish():
            self.notify()
        self.serve()
        assert [done for done, _ in driver.collect()] == [head], "the request needs one answer"
        return driver.response(head)

    def close(self) -> None:
        """Close the device and its file."""
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
