"""A virtio-pci driver in Python and a device that records its calls, for the transport's tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from patience import patience

from pykvm.bus import Bus
from pykvm.memory.ram import Ram
from pykvm.pci.host import CONFIG_PORT, CONFIG_PORTS, PciHost
from pykvm.pci.virtio_pci import VirtioPci
from pykvm.snapshot.fields import Fields, Saved
from pykvm.testing.fake_pci_services import FakePciServices
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
)
from pykvm.virtio.device import Activation, VirtioDevice
from pykvm.virtio.queue import Virtqueue

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
READY = ACKNOWLEDGE | DRIVER | FEATURES_OK
COMMON, NOTIFY, ISR, DEVICE, PCI_CFG = 1, 2, 3, 4, 5
NO_VECTOR = 0xFFFF
VERSION_HI = VIRTIO_F_VERSION_1 >> 32
ONE_QUEUE = 1 << 7
"""A feature of FakeDevice."""


class FakeDevice:
    """A block-like device with two queues that only records its calls."""

    device_id = 2
    features = (
        1 << 6
        | ONE_QUEUE
        | VIRTIO_F_EVENT_IDX
        | VIRTIO_F_INDIRECT_DESC
        | VIRTIO_F_RING_PACKED
        | VIRTIO_F_NOTIFICATION_DATA
        | VIRTIO_F_RING_RESET
    )
    queue_sizes = (16, 8)

    def __init__(self) -> None:
        self.config = bytes(range(60))
        self.activation: Activation | None = None
        self.resets = 0
        self.serving: set[int] = set()
        self.stopped: list[int] = []
        self.started: list[Virtqueue] = []
        self.closed = False
        self.picky = False
        self.lacked: list[str] = []
        self.held = False

    def write_config(self, offset: int, size: int, value: int) -> None:
        written = value.to_bytes(size, "little")
        self.config = self.config[:offset] + written + self.config[offset + size :]

    def negotiated(self, features: int) -> bool:
        return not self.picky

    def queue_count(self, features: int) -> int:
        return 1 if features & ONE_QUEUE else len(self.queue_sizes)

    def hold(self) -> None:
        assert not self.held
        self.held = True

    def release(self) -> None:
        assert self.held
        self.held = False

    def activate(self, activation: Activation) -> None:
        assert self.activation is None
        self.activation = activation
        self.serving = {index for index, queue in enumerate(activation.queues) if queue}

    def stop_queue(self, index: int) -> None:
        assert self.activation
        assert index in self.serving
        self.serving.discard(index)
        self.stopped.append(index)

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        assert self.activation
        assert index == queue.index
        assert index not in self.serving
        assert index in self.stopped, "only a stopped queue can start"
        self.serving.add(index)
        self.started.append(queue)

    def lacks(self, lack: str) -> None:
        self.lacked.append(lack)

    def reset(self) -> None:
        self.resets += 1
        if self.activation:
            # A thread with a completion in flight, which reset has to wait for.
            activation = self.activation
            thread = Thread(target=self._finish, args=(activation,))
            thread.start()
            thread.join(timeout=patience())
            assert not thread.is_alive(), "reset holds a lock that interrupt() needs"
        self.activation = None

    def _finish(self, activation: Activation) -> None:
        activation.interrupt(0)
        activation.config_changed()

    def save(self) -> Fields:
        stopped = bytes(sorted(set(self.stopped)))
        return {"config": self.config, "serving": bytes(self.serving), "stopped": stopped}

    def load(self, saved: Saved, activation: Activation | None) -> None:
        self.config = saved.data("config", 60, 60)
        self.serving = set(saved.data("serving", 0, 2))
        self.stopped = list(saved.data("stopped", 0, 2))
        saved.end()
        if activation:
            assert self.activation is None
            assert self.serving == {index for index, q in enumerate(activation.queues) if q}
        self.activation = activation

    def load_in_place(self, saved: Saved) -> None:
        activation, serving = self.activation, self.serving
        assert activation
        self.load(saved, None)
        assert self.serving == serving
        self.activation = activation

    def close(self) -> None:
        self.reset()
        self.closed = True


class Guest:
    """Acts as a driver: finds the structures through capabilities, then uses them."""

    def __init__(
        self,
        host: PciHost | None = None,
        services: FakePciServices | None = None,
        device: VirtioDevice | None = None,
        ram: Ram | None = None,
    ) -> None:
        """A PC with one function; given ``host`` and its ``services``, one more function.

        ``device`` is its device, by default a FakeDevice.
        """
        self.services = services or FakePciServices()
        self.ports = Bus()
        self.host = host or PciHost(self.services.mmio)
        self.ports.add(CONFIG_PORT, CONFIG_PORTS, self.host)
        self.device = device or FakeDevice()
        self.ram = ram or Ram.flat(1 << 16)
        self.function = VirtioPci(self.device, self.ram, self.services)
        self.number = self.host.add(self.function)
        self.line = self.services.lines[16 + self.number]
        self.vectors = self.services.vectors
        self.drivers: list[SplitDriver] = []
        self.caps = self.capabilities()
        self.set_config(4, 2, 6)  # memory and bus master

    # Configuration space

    def config(self, register: int, size: int = 4) -> int:
        self.ports.write(0xCF8, 4, 1 << 31 | self.number << 11 | register & 0xFC)
        return self.ports.read(0xCFC + (register & 3), size)

    def set_config(self, register: int, size: int, value: int) -> None:
        self.ports.write(0xCF8, 4, 1 << 31 | self.number << 11 | register & 0xFC)
        self.ports.write(0xCFC + (register & 3), size, value)

    def capabilities(self) -> dict[int, tuple[int, int, int, int]]:
        """Virtio structure type → (capability's offset, BAR, offset, length); 0x1100: MSI-X."""
        found: dict[int, tuple[int, int, int, int]] = {}
        at = self.config(0x34, 1)
        while at:
            if self.config(at, 1) == 0x09:
                kind = self.config(at + 3, 1)
                bar, offset, length = self.config(at + 4, 1), *map(self.config, (at + 8, at + 12))
                found[kind] = (at, bar, offset, length)
            else:
                found[0x1100] = (at, 0, 0, 0)
            at = self.config(at + 1, 1)
        return found

    def address(self, kind: int, offset: int = 0) -> int:
        _, bar, start, _ = self.caps[kind]
        return (self.config(0x10 + 4 * bar) & ~0xF) + start + offset

    # Structures

    def get(self, offset: int, size: int, kind: int = COMMON) -> int:
        return self.services.load(self.address(kind, offset), size)

    def set(self, offset: int, size: int, value: int, kind: int = COMMON) -> None:
        self.services.store(self.address(kind, offset), size, value)

    @property
    def status(self) -> int:
        return self.get(0x14, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.set(0x14, 1, value)

    def accept(self, features: int) -> None:
        for half in (0, 1):
            self.set(0x08, 4, half)
            self.set(0x0C, 4, features >> 32 * half & 0xFFFFFFFF)

    def negotiate(self, features: int = VIRTIO_F_VERSION_1) -> None:
        self.status = ACKNOWLEDGE
        self.status = ACKNOWLEDGE | DRIVER
        self.accept(features)
        self.status = READY

    def place(self, queue: int, desc: int, avail: int, used: int, size: int | None = None) -> None:
        self.set(0x16, 2, queue)
        if size is not None:
            self.set(0x18, 2, size)
        for offset, value in ((0x20, desc), (0x28, avail), (0x30, used)):
            self.set(offset, 4, value & 0xFFFFFFFF)
            self.set(offset + 4, 4, value >> 32)
        self.set(0x1C, 2, 1)

    def start(self, queues: int = 2) -> Activation:
        self.negotiate()
        for queue in range(queues):
            driver = SplitDriver(self.ram, size=8, base=0x1000 + 0x4000 * queue, heap=0x1000)
            self.drivers.append(driver)
            self.place(queue, driver.desc, driver.avail, driver.used, 8)
        self.status = READY | DRIVER_OK
        assert self.device.activation
        return self.device.activation

    @property
    def msix_base(self) -> int:
        return self.config(0x14) & ~0xF

    def use_msix(self, masked: bool = False) -> None:
        base = self.msix_base
        for index in range(3):
            self.services.store(base + 16 * index, 4, 0xFEE00000)
            self.services.store(base + 16 * index + 8, 4, 0x40 + index)
            self.services.store(base + 16 * index + 12, 4, int(masked))
        self.set_config(self.caps[0x1100][0] + 2, 2, 0x8000)

    def kick(self, queue: int) -> int:
        assert self.device.activation
        return self.device.activation.kicks[queue]

    def kicked(self, queue: int) -> bool:
        try:
            return os.eventfd_read(self.kick(queue)) > 0
        except BlockingIOError:
            return False


@contextmanager
def plugged_in() -> Iterator[Guest]:
    """A guest whose function, when it is unplugged, has closed its device and its doorbells."""
    guest = Guest()
    yield guest
    guest.host.close()
    assert guest.device.closed
    assert not guest.services.doorbells
