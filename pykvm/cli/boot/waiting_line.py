"""One line on the user's terminal while they wait. Imported only for terminals."""

import os
import select
import threading
import time
from contextlib import suppress

from pykvm.cli.say import STDERR
from pykvm.host.threads import start

PATIENCE_SECONDS = 1.0
"""The line appears after this time without output of the guest. Then it counts seconds."""
_ERASE = "\r\x1b[K"


class WaitingLine:
    """Shows ``text`` and the seconds on standard error, a terminal, until :meth:`end`.

    It owns a thread, which counts from :meth:`start` on. At the end it erases the line. A terminal
    that takes no output at the moment (Ctrl-S) makes no caller wait.
    """

    def __init__(self, text: str = "the guest is booting") -> None:
        self._text = text
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._shown = False

    def start(self) -> None:
        """Begin to count."""
        thread = threading.Thread(target=self._run, name="waiting line", daemon=True)
        start(thread, "the line that shows the boot")
        self._thread = thread

    def end(self) -> None:
        """Erase the line, before any other output. It is gone on return. May be repeated."""
        if self._ended.is_set():
            return
        with self._lock:
            if self._shown:
                _show(_ERASE)
                self._shown = False
            # Set last: a caller that sees it set prints without the lock, and the line's erasure
            # must not erase that output.
            self._ended.set()

    def join(self) -> None:
        """:meth:`end`, and wait for the thread's end."""
        self.end()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(PATIENCE_SECONDS):
            with self._lock:
                if not self._ended.is_set():
                    seconds = time.monotonic() - started
                    self._shown |= _show(f"{_ERASE}pykvm: {self._text}, {seconds:.0f} s")


def _show(text: str) -> bool:
    """Write the part of ``text`` that needs no waiting. True if that is at least one byte."""
    shown = False
    with suppress(OSError):
        # A terminal that takes one byte may not take all, and a write of the rest would wait.
        for byte in text.encode():
            if not select.select([], [STDERR], [], 0)[1]:
                break
            os.write(STDERR, bytes((byte,)))
            shown = True
    return shown
