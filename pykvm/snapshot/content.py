"""The content of files with holes: where data are, and a hash that holes do not change."""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""The first byte of a range, and the byte after its last one."""

PAGE = 4096
_PIECE = 1 << 20
_ZEROS = bytes(PAGE)


def data_ranges(fd: int, size: int) -> Iterator[Range]:
    """The ranges of the file's first ``size`` bytes that hold data; the rest are zeros. OSError."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def content_hash(fd: int) -> bytes:
    """A hash of the file. A copy with holes at other places has the same one. OSError."""
    size = os.fstat(fd).st_size
    digest = hashlib.sha256(b"%d" % size)
    done = 0
    for first, last in data_ranges(fd, size):
        # A filesystem's blocks may be smaller than pages.
        at = max(done, first // PAGE * PAGE)
        done = max(done, -(-last // PAGE) * PAGE)
        while at < done:
            data = _read(fd, min(done - at, _PIECE), at)
            for start in range(0, len(data), PAGE):
                page = data[start : start + PAGE]
                if page != _ZEROS[: len(page)]:
                    digest.update(b"%d:" % (at + start))
                    digest.update(page)
            at += _PIECE
    return digest.digest()


def _read(fd: int, length: int, at: int) -> bytes:
    """``length`` bytes from byte ``at`` on, or those before the end of the file."""
    data = os.pread(fd, length, at)
    while len(data) < length and (more := os.pread(fd, length - len(data), at + len(data))):
        data += more
    return data


def write_memory(fd: int, memory: memoryview, ranges: Iterable[Range]) -> None:
    """Make the empty file hold ``memory``, which holds zeros outside ``ranges``. OSError.

    ``ranges`` are in order. Pages of zeros become holes.
    """
    os.ftruncate(fd, len(memory))
    for start, end in _runs(memory, ranges):
        at = start
        while at < end:
            at += os.pwrite(fd, memory[at:end], at)


def _runs(memory: memoryview, ranges: Iterable[Range]) -> Iterator[Range]:
    """Where pages that are not zeros begin and end."""
    start, done = -1, 0
    for first, last in ranges:
        begin = max(done, first // PAGE * PAGE)
        if start >= 0 and begin > done:
            yield start, done
            start = -1
        for at in range(begin, last, PAGE):
            if memory[at : at + PAGE].tobytes() == _ZEROS[: len(memory) - at]:
                if start >= 0:
                    yield start, at
                start = -1
            elif start < 0:
                start = at
        done = max(done, min(-(-last // PAGE) * PAGE, len(memory)))
    if start >= 0:
        yield start, done
