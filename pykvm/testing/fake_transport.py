"""A transport made of eventfds and lists, to run a whole device without a guest.

::

    with FakeTransport(device) as transport:
        transport.start()
        driver = transport.drivers[0]
        head = driver.send([header], [512, 1])
        length = transport.wait(head)          # notifies, waits for the interrupt, collects
        data = driver.response(head)
"""

import os
import time
from collections.abc import Sequence
from threading import Condition

from pykvm.memory.ram import Ram
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.constants import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1
from pykvm.virtio.device import Activation, VirtioDevice
from pykvm.virtio.fence import queue_fence

DEFAULT_RAM = 4 << 20
PATIENCE_SECONDS = 60.0


class FakeTransport:
    """Connects ``device`` to test drivers, one per queue: ``drivers``.

    VIRTIO_F_RING_PACKED decides between SplitDriver and PackedDriver.
    ``interrupts`` lists the queue number of each interrupt, in order;
    ``config_changes`` counts configuration interrupts; ``broken`` lists the
    device's reasons. ``done`` maps (queue, head) to the bytes written, for heads
    that were collected and that :meth:`wait` has not returned yet. One test thread
    uses it; the device calls it from its own threads.
    """

    def __init__(
        self,
        device: VirtioDevice,
        ram: Ram | None = None,
        *,
        features: int | None = None,
        queue_size: int | None = None,
        disabled: Sequence[int] = (),
    ) -> None:
        """Lay out one driver per queue, without negotiating.

        ``ram`` defaults to 4 MiB at address 0, divided evenly between the
        queues; ``features`` to all features that the device offers;
        ``queue_size`` to each queue's largest. The queues in ``disabled``, and
        those that the features leave out, are None in the activation.
        """
        self.device = device
        self.ram = ram or Ram.flat(DEFAULT_RAM)
        offered = device.features | VIRTIO_F_VERSION_1
        self.features = offered if features is None else features
        assert not self.features & ~offered, "features that the device does not offer"
        self.interrupts: list[int] = []
        self.config_changes = 0
        self.broken: list[str] = []
        self.done: dict[tuple[int, int], int] = {}
        self.active = False
        self._changed = Condition()
        self._disabled = frozenset(disabled)
        sizes = [min(queue_size or largest, largest) for largest in device.queue_sizes]
        self.drivers = [self._lay_out(index, size) for index, size in enumerate(sizes)]
        self.kicks = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in self.drivers]

    def _lay_out(self, index: int, size: int) -> SplitDriver | PackedDriver:
        region = self.ram.regions[0]
        share = (region.size - 0x1000) // len(self.device.queue_sizes) & ~0xFFF
        kind = PackedDriver if self.features & VIRTIO_F_RING_PACKED else SplitDriver
        return kind(
            self.ram,
            size=size,
            features=self.features,
            base=region.start + 0x1000 + index * share,
            heap=share - 30 * size - 256,
            fence=queue_fence(),
        )

    def start(self) -> None:
        """Activate the device with new queues, as DRIVER_OK does."""
        assert not self.active, "started twice"
        assert self.device.negotiated(self.features), "the device refuses these features"
        fence = queue_fence()
        missing = range(self.device.queue_count(self.features), len(self.drivers))
        queues = [
            None if index in (*self._disabled, *missing) else driver.device_queue(index, fence)
            for index, driver in enumerate(self.drivers)
        ]
        self.active = True
        self.device.activate(
            Activation(
                ram=self.ram,
                features=self.features,
                queues=queues,
                kicks=self.kicks,
                interrupt=self._interrupt,
                config_changed=self._config_changed,
                broken=self._broken,
            )
        )

    def notify(self, queue: int = 0) -> None:
        """Kick the queue, even if the device asked for no notification."""
        os.eventfd_write(self.kicks[queue], 1)

    def submit(self, queue: int = 0) -> bool:
        """Publish added chains, and notify if the device wants it; True if it did."""
        wanted = self.drivers[queue].publish()
        if wanted:
            self.notify(queue)
        return wanted

    def wait(self, head: int, queue: int = 0, timeout: float = PATIENCE_SECONDS) -> int:
        """Submit, then wait until ``head`` is used; return the bytes written. TimeoutError.

        Sleeps until an interrupt, as a driver does, so a lost interrupt shows as a timeout.
        """
        self.submit(queue)
        deadline = time.monotonic() + timeout
        while (queue, head) not in self.done:
            self.collect(queue)
            with self._changed:
                if (queue, head) in self.done or self.drivers[queue].enable_interrupts():
                    continue
                seen = len(self.interrupts)
                left = deadline - time.monotonic()
                if not self._changed.wait_for(lambda n=seen: len(self.interrupts) > n, left):  # type: ignore[misc]
                    raise TimeoutError(f"queue {queue}: no interrupt for head {head}")
        return self.done.pop((queue, head))

    def arm(self) -> int:
        """Ask every queue for an interrupt; return a number for :meth:`sleep`.

        -1: a queue has used heads to collect already.
        """
        with self._changed:
            seen = len(self.interrupts)
        # Ask all queues, even if the first has used heads.
        ready = [driver.enable_interrupts() for driver in self.drivers]
        return -1 if any(ready) else seen

    def sleep(self, armed: int, timeout: float) -> bool:
        """Sleep until an interrupt arrives that came after :meth:`arm`; False if none came.

        This does not read the rings, so that a lost interrupt shows.
        """
        with self._changed:
            return self._changed.wait_for(lambda: len(self.interrupts) > armed, timeout)

    def wait_broken(self, timeout: float = PATIENCE_SECONDS) -> str:
        """Wait until the device reports a broken ring; return the reason. TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self.broken), timeout):
                raise TimeoutError("the device did not report a broken ring")
            return self.broken[0]

    def collect(self, queue: int = 0) -> list[tuple[int, int]]:
        """Take the used heads, without waiting, and add them to ``done``."""
        used = self.drivers[queue].collect()
        for head, length in used:
            self.done[queue, head] = length
        return used

    def stop_queue(self, queue: int = 0, size: int = 0) -> None:
        """Reset the queue, as a write of 1 to its reset register does (virtio 1.2 §2.6.1).

        The queue gets a new ring, with ``size`` descriptors or as many as before,
        so :meth:`start_queue` can follow.
        """
        self.device.stop_queue(queue)
        for index, head in list(self.done):
            if index == queue:
                del self.done[index, head]
        self.drivers[queue] = self._lay_out(queue, size or self.drivers[queue].size)

    def start_queue(self, queue: int = 0) -> None:
        """Start the queue again, as enabling it does."""
        fresh = self.drivers[queue].device_queue(queue, queue_fence())
        self.device.start_queue(queue, fresh)

    def reset(self) -> None:
        """Reset the device, as a write of 0 to the status does. It is quiet afterwards.

        All queues get new rings, so :meth:`start` can follow.
        """
        self.device.reset()
        self.active = False
        self.done.clear()
        self.drivers = [self._lay_out(i, driver.size) for i, driver in enumerate(self.drivers)]

    def close(self) -> None:
        """Reset the device, which the caller closes, and close the eventfds."""
        self.device.reset()
        for kick in self.kicks:
            os.close(kick)
        self.kicks.clear()

    def __enter__(self) -> "FakeTransport":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- called by the device, from any thread -----------------------------

    def _interrupt(self, queue: int) -> None:
        with self._changed:
            self.interrupts.append(queue)
            self._changed.notify_all()

    def _config_changed(self) -> None:
        with self._changed:
            self.config_changes += 1
            self._changed.notify_all()

    def _broken(self, reason: str) -> None:
        with self._changed:
            self.broken.append(reason)
            self._changed.notify_all()
