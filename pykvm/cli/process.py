"""The process: the signals that end it, its CPU time limit and its standard streams."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

USUAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals by which people and programs usually end a program."""
_NEVER_HANDLED = {
    *(signal.SIGKILL, signal.SIGSTOP),
    # These report a fault of the process, which would recur as soon as a handler returns.
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
    # By default these are ignored or stop the process.
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    # Python ignores these, so that write() fails instead.
    *(signal.SIGPIPE, signal.SIGXFSZ),
}
ENDING_SIGNALS = tuple(sorted(signal.valid_signals() - _NEVER_HANDLED))
"""All signals that end a process by default, and would leave its terminal in raw mode."""

Handler = Callable[[int, FrameType | None], None]


def leave_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP end the process at once, with status 128 + n.

    The process cleans nothing up. Code that holds something that the kernel does not clean up
    uses :func:`signals_go_to` meanwhile. A signal that was ignored when the process started
    (nohup, a shell's background job) stays ignored.
    """
    # Only these: the other signals already end the process by default, and each handler takes time.
    for number in USUAL_SIGNALS:
        _handle(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextmanager
def signals_go_to(finish: Callable[[int], None]) -> Iterator[None]:
    """A context in which each of ENDING_SIGNALS calls ``finish(number)`` in the main thread."""

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
    """Set ``handler`` and return the handler that it replaces; None if that handler stays."""
    before = signal.getsignal(number)
    # A program that calls pykvm as a library may use SIGALRM and others for its own purposes.
    free = number in USUAL_SIGNALS or before is signal.SIG_DFL
    if before is None or before is signal.SIG_IGN or not free:
        return None
    signal.signal(number, handler)
    return before


def keep_time_to_tidy_up() -> None:
    """Where CPU time has a hard limit, have SIGXCPU come a second before SIGKILL."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if soft == hard and hard != resource.RLIM_INFINITY and hard > 1:
        resource.setrlimit(resource.RLIMIT_CPU, (hard - 1, hard))


def open_standard_streams() -> None:
    """Open /dev/null in place of each closed standard stream.

    Otherwise the next opened file would take the stream's number, and error messages would go into
    a disk image. Afterwards closed input is empty, closed output cannot be written (EBADF), and
    closed standard error discards everything.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # open() takes the lowest free number, which is fd because all lower ones are open.
            os.open("/dev/null", flags)
