"""Gives the guest's console the size of the user's terminal. Imported only for terminals."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pykvm.agent.client import AgentClient
from pykvm.cli.process import Handler


class Unheard:
    """The events of an agent that nobody asks for anything."""

    def ready(self) -> None:
        """The agent answers."""

    def failed(self, reason: str) -> None:
        """The agent makes no sense: then the console works all the same."""


class WindowSize:
    """Tells the guest's agent whenever the size of the terminal ``fd`` changes.

    ``size`` is the guest's size at the start, in rows and columns. ``connect`` makes a client for
    the agent, whose events come here.
    """

    def __init__(
        self,
        fd: int,
        size: tuple[int, int] | None,
        connect: "Callable[[WindowSize], AgentClient]",
    ) -> None:
        self._fd = fd
        self._told = size
        self._connect = connect
        self._client = connect(self)
        self._wake: Callable[[], None] = lambda: None
        self._ready = False

    def ready(self) -> None:
        """The agent answers."""
        self._ready = True
        self._wake()

    def failed(self, reason: str) -> None:
        """The agent makes no sense: then the console works all the same."""
        self._ready = False

    def reconnected(self) -> AgentClient:
        """A new client, for a guest that was restored or put back: it may have any size."""
        self._ready = False
        self._told = None
        self._client = self._connect(self)
        return self._client

    def look(self) -> None:
        """Tell the agent the size, if the agent is ready and knows a different size."""
        if not self._ready:
            return
        with suppress(OSError):
            size = os.get_terminal_size(self._fd)
            now = (size.lines, size.columns)
            if now != self._told and all(now):
                self._told = now
                self._client.resize(*now)

    @contextmanager
    def watched(self, wake: Callable[[], None]) -> Iterator[None]:
        """A context that calls ``wake`` when it is time for :meth:`look`.

        A signal handler may make the call. Changes are noticed only if the main thread enters it.
        """

        def changed(*_: object) -> None:
            wake()

        self._wake = wake
        before: Handler | int | None = None
        with suppress(ValueError):
            before = signal.signal(signal.SIGWINCH, changed)
        try:
            yield
        finally:
            if before is not None:
                signal.signal(signal.SIGWINCH, before)
