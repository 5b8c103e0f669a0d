"""The pages of a private mapping that differ from the file below it.

Linux copies such a page at its first write, whoever writes: the guest, a device or a
system call. So the pages that are no longer the file's are those that may have changed.
Linux 6.7 and later can list them (PAGEMAP_SCAN). Older ones show a word for each page
(Documentation/admin-guide/mm/pagemap.rst). In anonymous memory these are the pages in use.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from mmap import PAGESIZE
from struct import Struct

from pykvm.host.libc import address
from pykvm.lean.typing_names import Final
from pykvm.memory.frozen import Range

_PAGEMAP: Final = "/proc/self/pagemap"
_PAGEMAP_SCAN: Final = 0xC060_6610
_SCAN: Final = Struct("<12Q")
_FOUND: Final = Struct("<3Q")
_MOST_FOUND: Final = 2048
_FILE, _PRESENT, _SWAPPED, _ZERO_PAGE = 1 << 2, 1 << 3, 1 << 4, 1 << 5

# The upper three bits of a page's word: present, swapped, of a file.
_CHANGED: Final = bytes(word >> 5 in (0b100, 0b010, 0b110) for word in range(256))
_RUNS: Final = re.compile(rb"\x01+")


_kept: "dict[int, int]" = {}
"""The descriptor of the process's page map by its number; a fork has a page map of its own."""


def keep_pagemap() -> None:
    """Open what :func:`changed_ranges` needs, for a process that can open none later; OSError."""
    _kept[os.getpid()] = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)


def changed_ranges(start: int, size: int) -> list[Range]:
    """The changed ranges of the mapping at address ``start``, as offsets from there. OSError."""
    if (kept := _kept.get(os.getpid(), -1)) >= 0:
        fd = os.dup(kept)
    else:
        fd = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            return list(_scan(fd, start, size))
        except OSError:  # ENOTTY: an older kernel
            return list(_read(fd, start, size))
    finally:
        os.close(fd)


def _scan(fd: int, start: int, size: int) -> Iterator[Range]:
    found = bytearray(_FOUND.size * _MOST_FOUND)
    at, end = start, start + size
    while at < end:
        unwanted, wanted = _FILE | _ZERO_PAGE, _PRESENT | _SWAPPED
        # All of category_mask, and any of category_anyof_mask, once category_inverted is flipped.
        request = _SCAN.pack(
            *(_SCAN.size, 0, at, end, 0, address(found), _MOST_FOUND, 0),
            *(unwanted, unwanted, wanted, 0),
        )
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, bytearray(request))
        for first, last, _ in _FOUND.iter_unpack(memoryview(found)[: count * _FOUND.size]):
            yield first - start, last - start
            at = last
        # Where it stopped is the end of the last range. walk_end may tell of an earlier stop.
        if count < _MOST_FOUND:
            return


def _read(fd: int, start: int, size: int) -> Iterator[Range]:
    words = os.pread(fd, size // PAGESIZE * 8, start // PAGESIZE * 8)
    for run in _RUNS.finditer(words[7::8].translate(_CHANGED)):
        yield run.start() * PAGESIZE, run.end() * PAGESIZE
