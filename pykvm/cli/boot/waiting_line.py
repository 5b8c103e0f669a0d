"""One line on the user's terminal while a guest boots and says nothing. Imported for those only."""

import os
import select
import threading
import time
from contextlib import suppress

from pykvm.cli.say import STDERR
from pykvm.host.threads import start

PATIENCE_SECONDS = 1.0
"""A guest that speaks earlier needs no line. Then the line counts seconds."""
_ERASE = "\r\x1b[K"


class WaitingLine:
    """Tells on standard error, a terminal, that the guest is booting, until :meth:`end`.

    It counts in a thread of its own from :meth:`start` on, and leaves no trace. A
    terminal that takes nothing at the moment (Ctrl-S) keeps nobody waiting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._shown = False

    def start(self) -> None:
        """The guest runs from now on."""
        thread = threading.Thread(target=self._run, name="waiting line", daemon=True)
        start(thread, "the line that tells of the boot")

    def end(self) -> None:
        """The guest speaks, or somebody else does: the line is gone on return. May be repeated."""
        if self._ended.is_set():
            return
        with self._lock:
            if self._shown:
                _show(_ERASE)
                self._shown = False
            # Last: who sees it does not wait for the lock, and what it prints must not be erased.
            self._ended.set()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(PATIENCE_SECONDS):
            with self._lock:
                if not self._ended.is_set():
                    seconds = time.monotonic() - started
                    self._shown |= _show(f"{_ERASE}pykvm: the guest is booting, {seconds:.0f} s")


def _show(text: str) -> bool:
    """Write what of ``text`` can be written without waiting; whether that is any of it."""
    shown = False
    with suppress(OSError):
        # A terminal that takes something may not take all of it, and a write of that would wait.
        for byte in text.encode():
            if not select.select([], [STDERR], [], 0)[1]:
                break
            os.write(STDERR, bytes((byte,)))
            shown = True
    return shown
