"""Gives the guest's console the size of the user's terminal. Imported only for terminals."""

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pykvm.agent.protocol import PROTOCOL_VERSION, Kind, encode
from pykvm.cli.process import Handler


class WindowSize:
    """Tells the guest's agent whenever the size of the terminal ``fd`` changes.

    ``size`` is the guest's size at the start, in rows and columns. ``send`` sends bytes to the
    agent. The agent's bytes go to :meth:`received`.
    """

    def __init__(
        self,
        fd: int,
        size: tuple[int, int] | None,
        send: Callable[[bytes], object],
    ) -> None:
        self._fd = fd
        self._told = size
        self._send = send
        self._wake: Callable[[], None] = lambda: None
        self._heard = b""
        self._ready = False

    def received(self, data: bytes) -> None:
        """Take ``data`` from the agent, whose first message says that it is ready."""
        hello = encode(Kind.HELLO, PROTOCOL_VERSION.to_bytes(2, "little"))
        if not self._ready and len(self._heard) < len(hello):
            self._heard += data
            self._ready = self._heard.startswith(hello)
            if self._ready:
                self._wake()

    def look(self) -> None:
        """Tell the agent the size, if the agent is ready and knows a different size."""
        if not self._ready:
            return
        with suppress(OSError):
            size = os.get_terminal_size(self._fd)
            now = (size.lines, size.columns)
            if now != self._told and all(now):
                self._told = now
                self._send(encode(Kind.RESIZE, struct.pack("<HH", *now)))

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
