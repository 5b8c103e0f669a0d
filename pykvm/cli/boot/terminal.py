"""Puts the user's terminal into raw mode, and restores it however the run ends.

In raw mode every key goes to the guest, Ctrl-C and Ctrl-Z too. ``__exit__`` restores the terminal,
after a normal end and after an exception. A signal that ends the process needs a handler that turns
it into one of these. A stop of the process (SIGTSTP) restores the terminal until SIGCONT.

A process in the background of its terminal must not touch it, because the shell then owns the
modes. So this module sets and restores modes only in the foreground. :meth:`RawTerminal.resume`
may be called again later. SIGTTIN and SIGTTOU are ignored meanwhile, so that a run in the
background continues instead of being stopped. Reading then fails with EIO.
"""

import os
import signal
import termios
import threading
from types import FrameType
from typing import Any, Self

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6


class RawTerminal:
    """A context in which the terminal ``fd`` is raw. Does nothing if ``fd`` is no terminal.

    Signal handlers are set only in the main thread, as Python demands.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None
        self._raw = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            self._saved = termios.tcgetattr(self._fd)
        except (termios.error, OSError):
            return self
        try:
            self._install_handlers()
            self.resume()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.suspend()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        self._saved = None

    @property
    def is_terminal(self) -> bool:
        """True within the context if ``fd`` is a terminal."""
        return self._saved is not None

    @property
    def raw(self) -> bool:
        """True if this object has made the terminal raw and not restored it since."""
        return self._raw

    def in_foreground(self) -> bool:
        """True if this process may use the terminal.

        Also true without job control: for a terminal of a different session, or one that is gone.
        """
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True

    def resume(self) -> None:
        """Make the terminal raw if this process is in its foreground. May be repeated."""
        if self._saved is not None and self.in_foreground():
            self._raw = self._set(_raw_modes(self._saved))

    def suspend(self) -> None:
        """Restore the terminal's former modes."""
        if self._saved is not None and self._raw and self.in_foreground():
            self._set(self._saved)
        self._raw = False

    def _set(self, modes: list[Any]) -> bool:
        # TCSANOW, because the alternatives wait until all output is read, perhaps for ever.
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, modes)
        except (termios.error, OSError):
            return False  # the terminal is gone
        return True

    def _install_handlers(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        wanted: dict[int, Any] = {
            signal.SIGTSTP: self._on_stop,
            signal.SIGCONT: self._on_continue,
            signal.SIGTTIN: signal.SIG_IGN,
            signal.SIGTTOU: signal.SIG_IGN,
        }
        for number, handler in wanted.items():
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:
                # getsignal() returns None for a handler that Python did not set.
                self._handlers[number] = signal.SIG_DFL if before is None else before
                signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.suspend()
        signal.signal(number, signal.SIG_DFL)
        # The process stops here, unless there is no shell that could wake it again.
        os.kill(os.getpid(), number)
        signal.signal(number, self._on_stop)
        self.resume()

    def _on_continue(self, number: int, frame: FrameType | None) -> None:
        self.resume()


def _raw_modes(modes: list[Any]) -> list[Any]:
    """A copy of ``modes`` that passes every byte unchanged and at once, in both directions."""
    raw = list(modes)
    raw[_IFLAG] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[_OFLAG] &= ~termios.OPOST
    raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[_CC] = list(modes[_CC])
    raw[_CC][termios.VMIN] = 1
    raw[_CC][termios.VTIME] = 0
    return raw
