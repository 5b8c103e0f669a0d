"""Writing all of a buffer to a file descriptor."""

import os
import select


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to ``fd``; wait where a non-blocking ``fd`` takes no more. OSError."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            # A process that shares the open file, such as a shell's job, can make it non-blocking.
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
