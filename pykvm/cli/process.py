"""What holds for the whole process: its standard streams, and the signals that end it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None]


def leave_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP end the process at once, with status 128 + n.

    Nothing is cleaned up: whoever has something that the kernel does not
    clean up uses :func:`signals_go_to` meanwhile. A signal that was ignored
    when the process started (nohup, a shell's background job) stays so.
    """
    for number in ENDING_SIGNALS:
        _handle(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextmanager
def signals_go_to(finish: Callable[[int], None]) -> Iterator[None]:
    """Within it, these signals call ``finish(number)`` in the main thread instead."""

    def end(number: int, frame: FrameType | None) -> None:
        finish(number)

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number in ENDING_SIGNALS:
        _handle(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, handler: Handler) -> None:
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


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
