"""Writing to the standard streams when nobody may be there to read."""

import os

STDOUT, STDERR = 1, 2


def say(text: str) -> None:
    """One line to standard error, from pykvm itself."""
    put(STDERR, f"pykvm: {text}\n")


def put(fd: int, text: str) -> None:
    """All of ``text`` to ``fd``; nothing if it is closed or its reader is gone.

    Not by print(): what that could not write stays in Python's buffer, and
    the exit status would be that of the next attempt, at the end.
    """
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return
