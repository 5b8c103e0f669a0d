"""The host's knowledge of a command in a guest: output that nobody has read, and its end."""

import threading
import time
from typing import Protocol

STREAMS = ("stdout", "stderr")
MOST_KEPT = 64 << 20
"""The most bytes of a stream that are kept while nothing limits it, so that no guest fills the
host's memory."""


class Handle(Protocol):
    """A running command, as the agent's client has it (pykvm.agent.client.CommandHandle)."""

    def stdin(self, data: bytes) -> bool: ...
    def stdin_eof(self) -> None: ...
    def signal(self, number: int) -> None: ...
    def consumed(self, stdout: int = 0, stderr: int = 0) -> None: ...


class Exit(Protocol):
    """The end of a command, as the agent's client tells it."""

    @property
    def status(self) -> int: ...
    @property
    def signal(self) -> int: ...


class Running:
    """A command: the agent's client calls these methods, in a vCPU's thread. None waits or raises.

    ``changed`` guards the attributes, and tells of each change. ``kept`` has the bytes of each
    stream that nobody has read, of which the guest has no credit for the last ``owed``. ``exit``
    and ``reason`` are None until the command ends: with an exit, or by a failure. ``overflow``
    names a stream that became too long.
    """

    def __init__(self, unlimited: bool) -> None:
        """``unlimited``: the guest sends as much as it likes."""
        self.changed = threading.Condition()
        self.kept = (bytearray(), bytearray())
        self.owed = [0, 0]
        self.exit: Exit | None = None
        self.reason: str | None = None
        self.overflow = ""
        self.has_room = True
        self.handle: Handle
        self.began = self.ended = time.monotonic()
        self._attached = False
        self._discards = False
        self._unlimited = unlimited
        self._draining = unlimited

    @property
    def over(self) -> bool:
        """The command has ended, or will never tell of its end."""
        return self.exit is not None or self.reason is not None

    def attach(self, handle: Handle) -> None:
        """``handle`` is the command's: output may have come already."""
        with self.changed:
            self.handle = handle
            self._attached = True
            if self._draining:
                self.drain(True)

    def discard(self) -> None:
        """Nobody reads the output any more: drop it, so that the command can end."""
        with self.changed:
            self._discards = True
            for kept in self.kept:
                kept.clear()
            self.drain(True)

    def drain(self, on: bool) -> None:
        """Whether the guest gets credit at once for all that it sends. ``changed`` is held."""
        self._draining = on or self._unlimited
        if self._draining:
            self.pay(0, 0)
            self.pay(1, 0)

    def pay(self, stream: int, unread: int) -> None:
        """Give the guest credit, but for the last ``unread`` bytes. ``changed`` is held."""
        count = max(0, self.owed[stream] - unread)
        if self._unlimited or not count or self.over or not self._attached:
            return
        self.owed[stream] -= count
        self.handle.consumed(**{STREAMS[stream]: count})

    # -- RunEvents -------------------------------------------------------------

    def stdout(self, data: bytes) -> None:
        """See RunEvents."""
        self._output(0, data)

    def stderr(self, data: bytes) -> None:
        """See RunEvents."""
        self._output(1, data)

    def exited(self, exit: Exit) -> None:
        """See RunEvents."""
        with self.changed:
            self.exit = exit
            self.ended = time.monotonic()
            self.changed.notify_all()

    def failed(self, reason: str) -> None:
        """See RunEvents."""
        with self.changed:
            self.reason = reason
            self.ended = time.monotonic()
            self.changed.notify_all()

    def room(self) -> None:
        """See RunEvents."""
        with self.changed:
            self.has_room = True
            self.changed.notify_all()

    def _output(self, stream: int, data: bytes) -> None:
        with self.changed:
            kept = self.kept[stream]
            if self._draining and len(kept) + len(data) > MOST_KEPT:
                self.overflow = STREAMS[stream]
                kept.clear()
            if not self.overflow and not self._discards:
                kept += data
            self.owed[stream] += len(data)
            if self._draining:
                self.pay(stream, 0)
            self.changed.notify_all()
