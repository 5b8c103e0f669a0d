"""One vectored read or write of guest memory: the system call.

Each form of the hot path (speed/README.md) makes the system call in its own way.
The compiled form releases the GIL during the call, like the standard library.
"""

import errno
import os

from pykvm.hot import cython_stub as cython
from pykvm.hot.words import Bytes, Longs

if cython.compiled:
    from cython.cimports.libc import errno as c_errno
    from cython.cimports.posix import uio

IOV_MAX = 1024
"""The most segments that Linux takes (UIO_MAXIOV); :class:`Limits` keeps within it."""


def transfer(
    write: bool,
    fd: int,
    memory: Bytes,
    offsets: Longs,
    lengths: Longs,
    first: int,
    last: int,
    position: int,
) -> int:
    """Move segments ``first`` up to, not including, ``last`` between memory and the file.

    Segment i is ``memory[offsets[i] : offsets[i] + lengths[i]]``; ``position``
    is the byte in the file. Returns the bytes moved, which are fewer than wanted
    if the host cut the transfer short, or a negative errno.
    """
    moved: int
    error: int
    if cython.compiled:
        vector = cython.declare(uio.iovec[1024])
        count = last - first
        assert 0 <= count <= IOV_MAX, "the planner keeps within the limits"
        size = len(memory)
        for index in range(count):
            offset = offsets[first + index]
            length = lengths[first + index]
            assert 0 <= offset < size - length + 1, "the queue accepts only guest RAM"
            vector[index].iov_base = cython.address(memory[offset])
            vector[index].iov_len = length
        while True:
            with cython.nogil:
                if write:
                    moved = uio.pwritev(fd, vector, count, position)
                else:
                    moved = uio.preadv(fd, vector, count, position)
                error = c_errno.errno
            if moved >= 0:
                return moved
            if error != errno.EINTR:
                return -error
    views = [memory[offsets[i] : offsets[i] + lengths[i]] for i in range(first, last)]
    try:
        return (os.pwritev if write else os.preadv)(fd, views, position)
    except OSError as failure:
        return -(failure.errno or errno.EIO)
