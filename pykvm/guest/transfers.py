"""Waits for the agent's transfers: a file to the guest or from it, the kernel's log, a bus scan."""

import threading
from collections.abc import Callable

from pykvm.guest.errors import GuestTimeout
from pykvm.guest.session import Session
from pykvm.guest.waiting import Deadline


class Transfer:
    """A transfer; the agent's client calls ``data``, ``done``, ``failed`` and ``room``."""

    def __init__(self, session: Session, during: str, take: Callable[[bytes], None]) -> None:
        """``during`` names the transfer. ``take`` gets the data, in a vCPU's thread."""
        self.mode = 0
        self._session = session
        self._during = during
        self._take = take
        self._changed = threading.Condition()
        self._over = False
        self._reason: str | None = None
        self._error: BaseException | None = None
        self._has_room = True

    def wait(self, deadline: Deadline) -> None:
        """Wait for the end. GuestError, GuestDied, GuestTimeout."""
        self._wait(lambda: self._over, deadline)

    def send(self, data: bytes, send: Callable[[bytes], bool], deadline: Deadline) -> bool:
        """``send`` a piece when there is room; False if the transfer is over."""
        self._wait(lambda: self._has_room or self._over, deadline)
        if self._over:
            return False
        self._has_room = False
        if send(data):
            self.room()
        return True

    def _wait(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        with self._changed:
            while not condition():
                if not self._changed.wait(deadline.left):
                    message = f"{self._during} has not ended {deadline.text}"
                    raise GuestTimeout(message, self._session.console.tail())
        if self._error is not None:
            raise self._error
        if self._reason is not None:
            raise self._session.lost(self._reason, self._during)

    # -- events of the agent's client --------------------------------------------

    def data(self, data: bytes) -> None:
        """The next bytes."""
        try:
            self._take(data)
        except BaseException as error:  # such as a full disk of the host
            self._error = error

    def done(self, mode: int) -> None:
        """The transfer is complete."""
        self.mode = mode
        self._end()

    def failed(self, reason: str) -> None:
        """The transfer is over."""
        self._reason = reason
        self._end()

    def room(self) -> None:
        """More may be sent."""
        with self._changed:
            self._has_room = True
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
