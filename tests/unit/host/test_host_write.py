import errno
import os
import threading

import pytest

from pykvm.host.write import write_all

SIZE = 1 << 18
"""More than a pipe takes at once."""


@pytest.mark.parametrize("blocking", [True, False])
def test_a_whole_buffer_is_written_through_a_full_pipe(blocking: bool) -> None:
    read, write = os.pipe()
    os.set_blocking(write, blocking)
    data = os.urandom(SIZE)
    got = bytearray()

    def drain() -> None:
        while piece := os.read(read, 1 << 16):
            got.extend(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        write_all(write, data)
    finally:
        os.close(write)
        reader.join()
        os.close(read)
    assert got == data


def test_an_error_of_the_system_is_passed_on() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left") as raised:
            write_all(full, b"x")
    finally:
        os.close(full)
    assert raised.value.errno == errno.ENOSPC
