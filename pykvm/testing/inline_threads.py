"""Serves a disk's queues in the caller's thread, and inspects every operation.

For tests that need the same result each time, or thousands of runs a second:
a device made with ``threads=InlineThreads`` has no thread. It works only while
:meth:`InlineThreads.serve` runs.
"""

import os
from collections.abc import Callable, Collection, Sequence

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.engines.transfer import IOV_MAX
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.rates import NO_LIMITS, RateLimits
from pykvm.devices.virtio_blk.serving.io_thread_group import Halt, IoThreadGroup
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram


class InlineThreads(IoThreadGroup):
    """No threads: :meth:`serve` does their work.

    Engines must be done when they return from ``submit``. An exception goes
    to the caller of :meth:`serve`.
    """

    def __init__(
        self,
        name: str,
        count: int,
        on_broken: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
        *,
        limits: RateLimits = NO_LIMITS,
        poll_max_ns: int = 0,
        cpus: Collection[int] = (),
    ) -> None:
        """See IoThreadGroup."""
        super().__init__(name, 0, on_broken, on_failure, limits=limits)
        self._waiting: set[QueueService] = set()
        self.ended = True

    @property
    def services(self) -> Sequence[QueueService]:
        """The queues that are served."""
        return () if self.ended else super().services

    def serve(self) -> None:
        """Serve the queues that were notified, that waited at the start, or that have more.

        Each queue is served once, so a driver that refills it cannot prolong the call.
        """
        services = self.services
        if self._halts or any(service.halted for service in services):
            for service in services:
                service.halt()
            return
        for service in services:
            if service in self._waiting or _was_kicked(service.kick):
                self._waiting.discard(service)
                if service.drain():
                    self._waiting.add(service)
            if service.queue.error:
                self._broken(service.queue.error)
                return

    def start(self, halted: bool = False) -> None:
        """See IoThreadGroup."""
        super().start(halted)
        self.ended = False
        self._waiting = set(self.services)

    def pause(self, timeout: float | None = None, reason: Halt = Halt.OWNER) -> bool:
        """See IoThreadGroup."""
        self.halt(reason)
        self.serve()
        return True

    def resume(self, reason: Halt = Halt.OWNER) -> None:
        """See IoThreadGroup."""
        super().resume(reason)
        if self._halts:
            return
        self._waiting.update(self.services)
        for service in self.services:
            service.resume()

    def set_limits(self, limits: RateLimits) -> None:
        """See IoThreadGroup."""
        super().set_limits(limits)
        for service in self.services:
            service.complete()

    def _serve(self, service: QueueService) -> None:
        self._waiting.add(service)

    def _quiesce(self, service: QueueService) -> None:
        service.quiesce()
        self._waiting.discard(service)

    def _quiet(self) -> bool:
        return Halt.OWNER in self._halts or self.ended

    def _end(self) -> bool:
        first = not self.ended
        self.ended = True
        for service in self._services.values():
            service.quiesce()
        return first


class InspectingEngine:
    """A SyncEngine. AssertionError for an operation that no guest may cause.

    All of an operation's segments are guest RAM, as many as a system call
    takes, and its range is within the disk. ``operations`` counts the
    submitted operations.
    """

    def __init__(self, image: Image, ram: Ram, interfere: Callable[[], int] = int) -> None:
        """``interfere()`` is called before each operation.

        It gives an errno, or 0, or the most bytes to be moved as a negative number.
        """
        self.notifier = -1
        self.immediate = True
        self.operations = 0
        self._engine: Engine = SyncEngine(image, ram)
        self._image = image
        self._ram = ram
        self._interfere = interfere
        self._done: list[Operation] = []

    def submit(self, operations: Sequence[Operation]) -> None:
        """See Engine."""
        self.operations += len(operations)
        for operation in operations:
            self._inspect(operation)
            limit = self._interfere()
            if limit > 0:
                operation.error = limit
                self._done.append(operation)
                continue
            self._engine.submit([operation])
            self._done += self._engine.completions()
            if limit < 0 and operation.kind <= VIRTIO_BLK_T_OUT:
                operation.moved = min(operation.moved, -limit)

    def _inspect(self, operation: Operation) -> None:
        assert operation.offset >= 0, "it begins before the disk"
        assert 0 <= operation.length <= self._image.size - operation.offset, "it leaves the disk"
        if operation.kind > VIRTIO_BLK_T_OUT:
            return
        count = operation.last - operation.first
        assert 0 < count <= IOV_MAX, f"{count} segments"
        segments = range(operation.first, operation.last)
        lengths = [operation.lengths[i] for i in segments]
        assert sum(lengths) == operation.length, "its data are as long as it is"
        for index, length in zip(segments, lengths, strict=True):
            offset = operation.offsets[index]
            assert any(
                region.offset <= offset and offset + length <= region.offset + region.size
                for region in self._ram.regions
            ), f"{offset:#x}+{length:#x} is not guest RAM"

    def completions(self) -> Sequence[Operation]:
        """See Engine."""
        done, self._done = self._done, []
        return done

    def watch(self, watch: Watch) -> bool:
        """See Engine."""
        return False

    def stop(self) -> None:
        """See Engine."""
        self._engine.stop()

    def close(self) -> None:
        """See Engine."""
        self._engine.close()


def _was_kicked(eventfd: int) -> bool:
    """True if ``eventfd`` was written since the last call."""
    try:
        return os.eventfd_read(eventfd) > 0
    except BlockingIOError:
        return False
