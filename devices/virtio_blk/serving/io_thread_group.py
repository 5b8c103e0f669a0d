"""The threads in which a disk's queues are served: together they halt, go on and end."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from enum import Enum

from pykvm.devices.virtio_blk.serving.io_thread import IoThread
from pykvm.devices.virtio_blk.serving.queue_service import QueueService


class Halt(Enum):
    """Who has the threads halted: they go on when nobody does."""

    OWNER = "owner"
    """The owner of the disk; or the disk itself, after an error."""
    TRANSPORT = "transport"
    """The driver does not let the device use guest memory."""
    RESIZE = "resize"
    """The disk shrinks."""
    CACHE = "cache"
    """The driver switches to write-through."""


class IoThreads:
    """Owns the threads of one activation of a disk; see :class:`IoThread` for what each does.

    What ends one ends all: a queue that breaks (``on_broken`` with the reason,
    at most once) or a bug (``on_failure``, for each). Both are called in the
    thread that met it, when the others have been told; these serve what they
    have begun, and nothing after.
    """

    def __init__(
        self,
        name: str,
        services: Sequence[QueueService],
        count: int,
        on_broken: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
        *,
        poll_max_ns: int = 0,
        cpus: Collection[int] = (),
    ) -> None:
        """``services`` are dealt out in turn to ``count`` threads, fewer if there are fewer.

        OSError if the host has not the descriptors.
        """
        self._on_broken = on_broken
        self._on_failure = on_failure
        # All are halted before anybody lets one go on, and the other way round.
        self._lock = threading.Lock()
        self._ending = False
        self._halts: set[Halt] = set()
        self._threads: list[IoThread] = []
        try:
            for first in range(min(count, len(services))):
                thread = IoThread(
                    f"{name} {first}" if count > 1 else name,
                    services[first::count],
                    self._broken,
                    self._failed,
                    poll_max_ns,
                    cpus,
                )
                self._threads.append(thread)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Serve, at first without waiting for a kick. Once.

        HostError if the host has not the threads: :meth:`stop` ends those that it had.
        """
        for thread in self._threads:
            thread.start()

    def halt(self, who: Halt = Halt.OWNER) -> None:
        """Let nothing start any more, without waiting. From any thread.

        What a thread has begun it goes on with; :meth:`pause` waits for that.
        """
        with self._lock:
            self._halts.add(who)
            for thread in self._threads:
                thread.halt()

    def pause(self, timeout: float | None = None, who: Halt = Halt.OWNER) -> bool:
        """Halt; True once nothing is executing, or the threads have ended. Idempotent.

        False after ``timeout`` seconds, if that is not None: it halts all the
        same. Returns early if another thread resumes meanwhile. Not from one
        of the threads.
        """
        self.halt(who)
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not thread.wait_halted(left):
                return False
        return True

    @property
    def quiet(self) -> bool:
        """Nothing is executing, nor will be before the owner's :meth:`resume`."""
        others = self._halts and Halt.OWNER not in self._halts
        return not others and all(thread.quiet for thread in self._threads)

    def resume(self, who: Halt = Halt.OWNER) -> None:
        """Go on, with what was kept first, unless another wants a halt. Harmless if not halted."""
        with self._lock:
            self._halts.discard(who)
            if self._halts:
                return
            for thread in self._threads:
                thread.resume()

    def look_again(self) -> None:
        """The rate limits are others."""
        with self._lock:
            for thread in self._threads:
                thread.look_again()

    def add(self, service: QueueService) -> None:
        """Serve ``service`` instead of one that was removed."""
        min(self._threads, key=lambda thread: thread.load).add(service)

    def remove(self, service: QueueService) -> None:
        """Let nothing of ``service`` start any more; returns when it executes nothing."""
        for thread in self._threads:
            if thread.serves(service):
                thread.remove(service)

    def stop(self) -> None:
        """Stop serving and wait until what was executing is done. Not from one of the threads."""
        self._end()
        for thread in self._threads:
            thread.join()
        # They know us: without this, the rings would stay in memory until Python looks for cycles.
        self._threads = []

    def _end(self) -> bool:
        """Have every thread end; whether this was the first call."""
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
