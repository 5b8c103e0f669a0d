"""A disk as its owner controls it while it works: pauses, size, limits, recording."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pykvm.devices.virtio_blk.hooks import DeviceHooks
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.devices.virtio_blk.resizing import Resizing
from pykvm.devices.virtio_blk.restoring import Restoring
from pykvm.devices.virtio_blk.serving.io_thread_group import Halt, IoThreadGroup
from pykvm.devices.virtio_blk.write_cache import WriteCache
from pykvm.errors import UsageError

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.serving.recorder import Recorder


class DiskControls:
    """The owner's part of VirtioBlk, which makes the attributes."""

    image: Image
    queue_stats: tuple[Stats, ...]
    _hooks: DeviceHooks
    _threads: IoThreadGroup
    _cache: WriteCache
    _resizing: Resizing
    _restoring: Restoring

    @property
    def writeback(self) -> bool:
        """The present cache mode: writes may complete before they are on stable storage."""
        return self._cache.writeback

    @property
    def writes_through(self) -> bool:
        """True if the driver may take each completed write for stable (virtio 1.2 §5.2.6)."""
        return self._cache.writes_through

    @property
    def stats(self) -> Stats:
        """The counters of all queues together."""
        return Stats.total(self.queue_stats)

    @property
    def image_lock(self) -> threading.Lock:
        """Held by each call of the owner that uses or replaces the files of the image."""
        return self._resizing.lock

    def pause(self, timeout: float | None = None) -> bool:
        """Halt the service. True once no operation is in flight; False after ``timeout`` s.

        None: wait for as long as it takes. The driver must not run.
        """
        return self._threads.pause(timeout)

    def resume(self) -> None:
        """Resume after :meth:`pause` or after a failure with the action STOP.

        The failed and the waiting requests start again in the order of the
        ring, before new ones. If the disk is shrinking, they start when that is
        done; the call does not wait for it.
        """
        self._threads.resume()
        self._restoring.resumed()

    def resize(self, size: int) -> None:
        """Change the size of the disk to ``size`` bytes, and tell its driver. UsageError.

        The disk shrinks only while it is paused or has no driver, because an
        operation in flight could reach the part that is cut off. A resume or a
        start meanwhile takes effect when the disk has shrunk. Kept requests
        beyond the new end fail at the resume. Any thread may call this except
        the disk's own. It takes as long as the host takes.
        """
        self._resizing.resize(size)

    def record(
        self, recorder: "Recorder | None", before: Callable[[], None] = lambda: None
    ) -> None:
        """Record requests in ``recorder`` from now on; None: no longer.

        ``before()`` is called while no operation is in flight. UsageError if the disk is being
        recorded already.
        """
        if recorder is not None and self._threads.recorder is not None:
            raise UsageError(f"the disk {self.image.path} is being recorded", "end that before")
        self._threads.quieten(Halt.RECORD, self._hooks.over)
        try:
            before()
            self._threads.record(recorder)
        finally:
            self._threads.resume(Halt.RECORD)

    @property
    def limits(self) -> RateLimits:
        """The rate limits of the disk."""
        return self._threads.limits

    @limits.setter
    def limits(self, limits: RateLimits) -> None:
        """From any thread. Waiting requests obey the new limits, whose buckets are full."""
        self._threads.set_limits(limits)
