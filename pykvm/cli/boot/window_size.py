"""The size of the user's terminal, which the guest's console is to have too. For terminals only."""

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pykvm.agent.protocol import PROTOCOL_VERSION, Kind, encode
from pykvm.cli.process import Handler


class WindowSize:
    """Tells the guest's agent whenever the terminal ``fd`` has another size.

    ``size``, rows and columns, is what the guest was started with, and ``send``
    is the channel to its agent. What the agent says goes to :meth:`received`.
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
        """``data`` from the agent, which says first of all that it is there."""
        hello = encode(Kind.HELLO, PROTOCOL_VERSION.to_bytes(2, "little"))
        if not self._ready and len(self._heard) < len(hello):
            self._heard += data
            self._ready = self._heard.startswith(hello)
            if self._ready:
                self._wake()

    def look(self) -> None:
        """Tell the agent the size, if it is there and knows another."""
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
        """Within it ``wake`` is called, also by a signal handler, when :meth:`look` is to be.

        The terminal's changes are noticed in the main thread only.
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
