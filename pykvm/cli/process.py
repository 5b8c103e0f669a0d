"""What holds for the whole process: its standard streams, and the signals that end it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

USUAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What people and programs send to end another one."""
_NEVER_HANDLED = {
    *(signal.SIGKILL, signal.SIGSTOP),
    # A fault of the process itself would come again as soon as a handler returns.
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
    # Ignored, or stopping, by default.
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    # Python has write() fail instead.
    *(signal.SIGPIPE, signal.SIGXFSZ),
}
ENDING_SIGNALS = tuple(sorted(signal.valid_signals() - _NEVER_HANDLED))
"""All whose default is to end the process: a terminal in raw mode would stay so."""

Handler = Callable[[int, FrameType | None], None]


def leave_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP end the process at once, with status 128 + n.

    Nothing is cleaned up: whoever has something that the kernel does not
    clean up uses :func:`signals_go_to` meanwhile. A signal that was ignored
    when the process started (nohup, a shell's background job) stays so.
    """
    # The others do so by themselves, and it takes a while to tell them all.
    for number in USUAL_SIGNALS:
        _handle(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextmanager
def signals_go_to(finish: Callable[[int], None]) -> Iterator[None]:
    """Within it, ENDING_SIGNALS call ``finish(number)`` in the main thread instead."""

    def end(number: int, frame: FrameType | None) -> None:
        finish(number)

    before = {number: _handle(number, end) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _handle(number: int, handler: Handler) -> "Handler | int | None":
    """Set ``handler``; what it replaces, or None if that stays."""
    before = signal.getsignal(number)
    # A program that has this module run in it may have a use of its own for SIGALRM.
    free = number in USUAL_SIGNALS or before is signal.SIG_DFL
    if before is None or before is signal.SIG_IGN or not free:
        return None
    signal.signal(number, handler)
    return before


def keep_time_to_tidy_up() -> None:
    """Where CPU time is limited, have SIGXCPU come a second before SIGKILL, not together."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if soft == hard and hard != resource.RLIM_INFINITY and hard > 1:
        resource.setrlimit(resource.RLIMIT_CPU, (hard - 1, hard))


def open_standard_streams() -> None:
    """Put something in the place of standard streams that are closed.

    Else the next file opened would become one: error messages would go into
    a disk image. Closed input is empty, closed output cannot be written
    (EBADF), and what goes to a closed standard error is lost.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is this one, for those below are taken.
            os.open("/dev/null", flags)
