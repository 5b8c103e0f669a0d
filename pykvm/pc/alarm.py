"""A thread that calls a function once at a given time."""

import threading
import time
from collections.abc import Callable

from pykvm.host.threads import start


class Alarm:
    """Calls ``ring()`` from a separate thread at a given time.

    There is one time: :meth:`set` replaces an earlier one. The first :meth:`set`
    starts the thread.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._changed = threading.Condition()
        self._when: float | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def set(self, when: float) -> None:
        """Ring at ``when`` on the clock of time.monotonic(); at once if that has passed.

        HostError if no thread can be started.
        """
        with self._changed:
            if self._closed or self._when == when:
                return
            self._when = when
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="uart-pace", daemon=True)
                start(thread, "the pace of the guest's console")
                self._thread = thread
            self._changed.notify()

    def close(self) -> None:
        """End the thread, and return once it has ended. ``ring`` must not call this."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._wait():
            self._ring()

    def _wait(self) -> bool:
        """Sleep until the time has come (True) or the alarm is closed (False)."""
        with self._changed:
            while not self._closed:
                left = None if self._when is None else self._when - time.monotonic()
                if left is not None and left <= 0:
                    self._when = None
                    return True
                self._changed.wait(left)
            return False
