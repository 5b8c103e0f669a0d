"""The events of a machine, and their delivery to listeners."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from pykvm.host.threads import start
from pykvm.lean.typing_names import TYPE_CHECKING, Final
from pykvm.machine.outcome import Outcome

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk import IoError

MAX_BACKLOG: Final = 1000
"""The events that may wait for a listener. Further events are dropped if a guest can cause them
at will."""


class Event:
    """An event of a machine, at ``time_ns`` nanoseconds after the Epoch."""

    def __init__(self) -> None:
        self.time_ns = time.time_ns()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"


class Stop(Event):
    """The guest has stopped: no vCPU runs, and no disk executes anything."""


class Resume(Event):
    """The guest has resumed."""


class BlockIoError(Event):
    """The host could not carry out a request to the disk ``device`` ("virtio0").

    If its action is STOP, a :class:`Stop` follows.
    """

    def __init__(self, device: str, error: "IoError") -> None:
        super().__init__()
        self.device = device
        self.error = error


class HostShortage(Event):
    """The host lacks a resource, ``lack``, that the disk ``device`` needs.

    The disk serves no request until its driver resets it (DEVICE_NEEDS_RESET). The guest runs on.
    """

    def __init__(self, device: str, lack: str) -> None:
        super().__init__()
        self.device = device
        self.lack = lack


class DiskHeld(Event):
    """The guest's driver has started the disk ``device``, but has not made it a bus master.

    Its requests wait until the driver sets the bit (bit 2 of the PCI command register).
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device


class GuestPanicked(Event):
    """The guest's kernel panicked; ``reason`` is its message, or a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class Shutdown(Event):
    """The run is over, with ``outcome``. The last event of a machine."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


Listener = Callable[[Event], None]


class _Registration:
    """One call of :meth:`Announcer.listen`; the same listener may be given twice."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener


class Announcer:
    """Delivers events to listeners, one after another, in a separate thread.

    The thread lives from the first :meth:`listen` to :meth:`close`.
    ``on_failure`` gets the exceptions of listeners.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        self._events: SimpleQueue[Event | threading.Event | None] = SimpleQueue()
        self._lock = threading.Lock()
        # Replaced, never changed, because announce reads it without the lock.
        self._registered: tuple[_Registration, ...] = ()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def heard(self) -> bool:
        """True if there is a listener."""
        return bool(self._registered)

    def announce(self, event: Event) -> None:
        """Deliver ``event`` soon. Never waits; for any thread and for signal handlers.

        A guest may make its disk fail faster than listeners take the events.
        Then events are dropped (:func:`may_be_lost`), and memory use stays bounded.
        """
        if not self._registered:
            return
        if may_be_lost(event, self._events.qsize()):
            return
        self._events.put(event)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Deliver all later events to ``listener``; return a function that removes it.

        When that function returns, ``listener`` has got all earlier events and
        is not called again (unless it called the function). A listener may be
        added several times; each call returns a separate function. HostError,
        and nothing is added, if the host has no thread.
        """
        registration = _Registration(listener)
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="events", daemon=True)
                start(thread, "telling of events")
                self._thread = thread
            self._registered += (registration,)

        def forget() -> None:
            self.flush()
            with self._lock:
                left = tuple(one for one in self._registered if one is not registration)
                self._registered = left
            self.flush()

        return forget

    def flush(self) -> None:
        """Wait until all earlier events are delivered; in a listener, do not wait."""
        done = threading.Event()
        with self._lock:
            thread = self._thread
            if thread is None or thread is threading.current_thread():
                return
            if not self._closed:
                self._events.put(done)
        if self._closed:
            thread.join()
        else:
            done.wait()

    def close(self) -> None:
        """Deliver all earlier events, and end the thread. May be repeated."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._events.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        try:
            self._deliver_all()
        finally:
            with self._lock:
                self._closed = True  # from now on, no caller waits for this thread
            while not self._events.empty():
                item = self._events.get()
                if isinstance(item, threading.Event):
                    item.set()

    def _deliver_all(self) -> None:
        over = False
        while (item := self._events.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif not over:
                over = isinstance(item, Shutdown)
                self._deliver(item)

    def _deliver(self, event: Event) -> None:
        for registration in self._registered:
            try:
                registration.listener(event)
            except BaseException as error:
                self._on_failure(error)


def may_be_lost(event: Event, backlog: int) -> bool:
    """True if ``event`` may be dropped, because ``backlog`` events wait and a guest caused it."""
    if backlog < MAX_BACKLOG:
        return False
    if isinstance(event, BlockIoError):
        return not event.error.stops
    return isinstance(event, HostShortage | DiskHeld)
