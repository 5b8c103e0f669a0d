"""The standard streams, written past Python's buffers.

What print() could not write stays in a buffer, and the exit status would be
that of the next attempt, at the end.
"""

from contextlib import suppress

from pykvm.errors import PykvmError, reason_of, shown
from pykvm.host.write import write_all

STDIN, STDOUT, STDERR = 0, 1, 2
_LAYOUT = "\n\t"


def say(text: str, *, raw: bool = False, fresh: bool = False) -> None:
    """One line to standard error, from pykvm itself. Nobody may be there to read it.

    ``fresh``: it is a terminal, with the guest's cursor anywhere. ``raw``: it is in raw mode, too.
    """
    line = f"pykvm: {shown(text, keep=_LAYOUT)}\n"
    if raw or fresh:
        line = f"\n{line}"
    with suppress(OSError):
        put(STDERR, line.replace("\n", "\r\n") if raw else line)


def emit(text: str) -> None:
    """Write to standard output what the user asked for.

    BrokenPipeError if the reader is gone; PykvmError if it cannot be written.
    """
    try:
        put(STDOUT, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PykvmError(f"standard output cannot be written: {reason_of(error)}") from None


def put(fd: int, text: str) -> None:
    """Write all of ``text`` to ``fd``; OSError."""
    write_all(fd, text.encode("utf-8", "backslashreplace"))
