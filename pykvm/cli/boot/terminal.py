"""The user's terminal in raw mode, and back on every way out.

While raw, every key goes to the guest, Ctrl-C and Ctrl-Z too. The way back
is ``__exit__``, which runs for a normal end and for an exception; signals
that end the process must be turned into one of these by whoever handles
them. Stopping (SIGTSTP) gives the terminal back for the time being, and
SIGCONT takes it again.

A process in the background of its terminal must not touch it: the modes
are the shell's then. So nothing is set and nothing restored unless this
process is in the foreground; :meth:`RawTerminal.resume` may be called again
later. SIGTTIN and SIGTTOU are ignored meanwhile, so that a run in the
background goes on instead of being stopped; reading then gives EIO.
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
        """Whether ``fd`` is a terminal, within the context."""
        return self._saved is not None

    @property
    def raw(self) -> bool:
        """Whether the terminal is raw now, as far as this object knows."""
        return self._raw

    def in_foreground(self) -> bool:
        """Whether the terminal is this process's to use.

        True as well where job control does not apply: another session's
        terminal, or one that is gone.
        """
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True

    def resume(self) -> None:
        """Make the terminal raw, if it is ours to use; also after someone else changed it."""
        if self._saved is not None and self.in_foreground():
            self._raw = self._set(_raw_modes(self._saved))

    def suspend(self) -> None:
        """Give the terminal its former modes back."""
        if self._saved is not None and self._raw and self.in_foreground():
            self._set(self._saved)
        self._raw = False

    def _set(self, modes: list[Any]) -> bool:
        # TCSANOW: the others wait until all output is read, for ever if nobody reads it.
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
                # None stands for a handler that Python did not set.
                self._handlers[number] = signal.SIG_DFL if before is None else before
                signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.suspend()
        signal.signal(number, signal.SIG_DFL)
        # The process stops here. It does not if no shell could wake it again.
        os.kill(os.getpid(), number)
        signal.signal(number, self._on_stop)
        self.resume()

    def _on_continue(self, number: int, frame: FrameType | None) -> None:
        self.resume()


def _raw_modes(modes: list[Any]) -> list[Any]:
    """``modes`` changed to pass every byte unchanged both ways, at once."""
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
