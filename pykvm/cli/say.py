"""Writes to the standard streams without Python's buffers.

Text that print() cannot write stays in Python's buffer. Python tries again at the end of the
process, and a failure then changes the exit status.
"""

from contextlib import suppress

from pykvm.errors import PykvmError, reason_of, shown
from pykvm.host.write import write_all

STDIN, STDOUT, STDERR = 0, 1, 2
_LAYOUT = "\n\t"


def say(text: str, *, raw: bool = False, fresh: bool = False) -> None:
    """Write a message of pykvm's own to standard error; errors are ignored.

    ``fresh``: begin on a new line, because the guest may have left the terminal's cursor anywhere.
    ``raw``: the same for a terminal in raw mode.
    """
    line = f"pykvm: {shown(text, keep=_LAYOUT)}\n"
    if raw or fresh:
        line = f"\n{line}"
    with suppress(OSError):
        put(STDERR, line.replace("\n", "\r\n") if raw else line)


def emit(text: str) -> None:
    """Write the result that the user asked for to standard output.

    BrokenPipeError if the reader is gone; PykvmError for any other failure.
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
