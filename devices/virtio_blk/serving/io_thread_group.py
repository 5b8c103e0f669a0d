"""The threads in which a disk's queues are served: together they halt, resume and end."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

from pykvm.devices.virtio_blk.core.throttle import Throttle
from pykvm.devices.virtio_blk.rates import NO_LIMITS, RATE, RATES, RateLimits
from pykvm.devices.virtio_blk.serving.io_thread import IoThread
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.devices.virtio_blk.serving.saved_service import save_service
from pykvm.snapshot.fields import Fields, Saved

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.serving.recorder import Recorder

LOOK_SECONDS: Final = 0.1
"""A thread that waits for quiet queues checks this often whether the run has ended."""


class Halt(Enum):
    """The reason of a halt. The threads resume when no reason is left."""

    OWNER = "owner"
    """The owner of the disk has paused it, or a request has failed with the action STOP."""
    TRANSPORT = "transport"
    """The driver does not let the device use guest memory."""
    RESIZE = "resize"
    """The disk shrinks."""
    CACHE = "cache"
    """The driver switches to write-through."""
    RECORD = "record"
    """The owner begins or ends a recording."""


_LASTING: Final = frozenset((Halt.TRANSPORT, Halt.RESIZE, Halt.RECORD))
"""These halts outlast a reset and hold before an activation. The others end with a reset."""


class IoThreadGroup:
    """The one owner of the service of a disk's queues, for the life of the device.

    - **Threads.** :meth:`start` makes them, :meth:`stop` ends them. If one ends, all end: after
      a queue that broke (``on_broken`` with the reason, at most once for each start) or after a
      bug (``on_failure``, for each). Both are called in the thread that met it, when the other
      threads have been told. These complete the operations in flight and start none.
    - **Halts.** Every halt and every resume of the disk is a call of :meth:`halt` or
      :meth:`resume`, with its reason. Each :class:`IoThread` carries them out in its schedules. A
      schedule halts on its own only when the device decides STOP for one of its requests, and the
      device calls :meth:`halt` first.
    - **Release.** A service belongs to the group from :meth:`add` on. Only :meth:`remove` and
      :meth:`stop` release it: its thread awaits the operations in flight, then its engine is
      closed.
    - **Quiet.** Only the thread of a queue knows whether operations are in flight
      (:attr:`IoThread.quiet`). :meth:`pause` and :meth:`halt_if_quiet` ask the threads.
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
        """``count``: the most threads. For ``poll_max_ns`` and ``cpus`` see :class:`IoThread`."""
        self.limits = limits
        self._name = name
        self._count = count
        self._on_broken = on_broken
        self._on_failure = on_failure
        self._poll_max_ns = poll_max_ns
        self._cpus = cpus
        # Guards the attributes below: all threads halt before any resumes, and the other way round.
        self._lock = threading.Lock()
        self._throttle = _throttle(limits)
        self._recorder: Recorder | None = None
        self._halts: set[Halt] = set()
        self._services: dict[int, QueueService] = {}
        self._threads: list[IoThread] = []
        self._serving = False
        self._ending = False

    # -- queues and threads ---------------------------------------------------

    def add(self, service: QueueService) -> None:
        """Own ``service`` from now on. Before :meth:`start`, that lets it serve the queue.

        Later, this returns when the queue is served. OSError if the host lacks memory;
        :meth:`stop` then releases the service.
        """
        with self._lock:
            assert service.queue.index not in self._services, "a queue has one service"
            service.throttle = self._throttle
            service.record(self._recorder)
            self._services[service.queue.index] = service
        if self._serving:
            self._serve(service)

    def start(self, halted: bool = False) -> None:
        """Serve the queues that were added, at first without waiting for a notification.

        ``halted``: not before the owner's :meth:`resume`, which starts the threads. Before that
        the process can still confine itself.

        They are dealt out in turn to the threads. OSError or HostError if the host lacks
        descriptors or threads; :meth:`stop` then ends those that it had.
        """
        self._ending = False
        if halted:
            self._halts.add(Halt.OWNER)
        services = list(self._services.values())
        for first in range(min(self._count, len(services))):
            thread = IoThread(
                f"{self._name} {first}" if self._count > 1 else self._name,
                services[first :: self._count],
                self._broken,
                self._failed,
                self._poll_max_ns,
                self._cpus,
            )
            with self._lock:
                self._threads.append(thread)
                if self._halts:
                    thread.halt()
        self._serving = True
        for thread in self._threads:
            if halted:
                thread.start_later()
            else:
                thread.start()

    def remove(self, index: int) -> None:
        """Release queue ``index``: start none of its operations, and return when it is quiet.

        Harmless if the queue is not served. Not from one of the threads.
        """
        service = self._services.get(index)
        if service is None:
            return
        self._quiesce(service)
        with self._lock:
            del self._services[index]
        service.close()

    def stop(self) -> None:
        """Stop serving, await the operations in flight, and release every queue.

        Halts of the owner and of the cache are over. Not from one of the threads.
        """
        self._end()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._serving = False
            self._halts &= _LASTING
            # They know us: without this, the rings would stay in memory until Python looks for
            # cycles.
            self._threads = []
            services = list(self._services.values())
            self._services.clear()
        for service in services:
            service.close()

    # -- halting --------------------------------------------------------------

    def halt(self, reason: Halt = Halt.OWNER) -> None:
        """Start no operation any more, without waiting for those in flight. From any thread.

        Without an activation, only a halt that outlasts resets has an effect.
        """
        with self._lock:
            self._halt(reason)

    def halt_if_quiet(self, reason: Halt) -> bool:
        """Halt, unless operations are in flight or may start before the owner resumes the disk.

        True if it is halted.
        """
        with self._lock:
            if self._services and not (self._serving and self._quiet()):
                return False
            self._halt(reason)
            return True

    def pause(self, timeout: float | None = None, reason: Halt = Halt.OWNER) -> bool:
        """Halt. True once no operation is in flight, or the threads have ended. Idempotent.

        False after ``timeout`` seconds, unless that is None: the threads are halted all the same.
        Returns early if a different thread resumes meanwhile. Not from one of the threads.
        """
        self.halt(reason)
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not thread.wait_halted(left):
                return False
        return True

    def quieten(self, reason: Halt, over: Callable[[], bool]) -> None:
        """Halt, and return when no operation is in flight, or when the run is ``over()``."""
        while not self.pause(LOOK_SECONDS, reason):
            if over():
                return

    def resume(self, reason: Halt = Halt.OWNER) -> None:
        """End a halt. If no reason is left, resume, with the kept requests first.

        Harmless if nothing is halted. From any thread.
        """
        with self._lock:
            self._halts.discard(reason)
            if not self._halts:
                for thread in self._threads:
                    thread.resume()

    def halted_by(self, reason: Halt) -> bool:
        """True while a halt for ``reason`` lasts."""
        return reason in self._halts

    # -- rate limits ----------------------------------------------------------

    def set_limits(self, limits: RateLimits) -> None:
        """Go by ``limits``, with full buckets, also for requests that wait. From any thread."""
        with self._lock:
            self.limits = limits
            self._throttle = _throttle(limits)
            for service in self._services.values():
                service.throttle = self._throttle
            for thread in self._threads:
                thread.look_again()

    # -- recordings -----------------------------------------------------------

    @property
    def recorder(self) -> "Recorder | None":
        """The recorder of all services."""
        return self._recorder

    def record(self, recorder: "Recorder | None") -> None:
        """Have all services record in ``recorder``, or no longer. They are halted and idle."""
        with self._lock:
            self._recorder = recorder
            for service in self._services.values():
                service.record(recorder)

    # -- snapshots ------------------------------------------------------------

    @property
    def services(self) -> Sequence[QueueService]:
        """The queues that are served, in the order of their numbers."""
        with self._lock:
            services = () if self._ending else self._services.values()
            return sorted(services, key=lambda service: service.queue.index)

    def save(self) -> Fields:
        """The rate limits with their levels, and the queues, which are quiet after :meth:`pause`.

        After a queue that broke, or after a bug, no queue is served.
        """
        services = self.services
        with self._lock:
            levels = self._throttle.levels(time.monotonic_ns()) if self._throttle else {}
            return {
                "limits": vars(self.limits).copy(),
                "levels": levels,
                "queues": [save_service(service) for service in services],
            }

    def load_levels(self, saved: Saved) -> None:
        """Take over the levels in ``saved``, if the limits are the same. SnapshotError."""
        limits, levels = saved.part("limits"), saved.part("levels")
        values = {name: limits.integer(name, RATE[0], RATE[-1]) for name in RATES}
        limits.end()
        with self._lock:
            if self._throttle and values == vars(self.limits):
                self._throttle.set_levels(levels, time.monotonic_ns())

    # -- inside ---------------------------------------------------------------

    def _serve(self, service: QueueService) -> None:
        min(self._threads, key=lambda thread: thread.load).add(service)

    def _quiesce(self, service: QueueService) -> None:
        for thread in self._threads:
            if thread.serves(service):
                thread.remove(service)

    def _halt(self, reason: Halt) -> None:
        if self._serving or reason in _LASTING:
            self._halts.add(reason)
            for thread in self._threads:
                thread.halt()

    def _quiet(self) -> bool:
        """True if no operation is in flight, and none starts before the owner resumes the disk."""
        others = self._halts and Halt.OWNER not in self._halts
        return not others and all(thread.quiet for thread in self._threads)

    def _end(self) -> bool:
        """Have every thread end. True for the first call since the start."""
        with self._lock:
            first = not self._ending
            self._ending = True
            for thread in self._threads:
                thread.end()
        return first

    def _broken(self, reason: str) -> None:
        if self._end():
            self._on_broken(reason)

    def _failed(self, error: BaseException) -> None:
        self._end()
        self._on_failure(error)


def _throttle(limits: RateLimits) -> Throttle | None:
    return Throttle(limits, threading.Lock()) if limits else None
