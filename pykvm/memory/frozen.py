"""Guest RAM as it was at one moment, and the way there.

Frozen memory is a sealed memfd, or the file of a snapshot. Any number of machines map it
privately: they share the pages that none of them has written.

A guest's RAM is frozen in two steps. :class:`Copying` first copies while the guest runs, and
then, while it is stopped, only the pages that the guest has changed since its RAM was mapped.
Copying all of them twice sounds wasteful. But the first time takes most of the time, because
the new memory has to be allocated.
"""

import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from pykvm.lean.typing_names import Final

_F_ADD_SEALS: Final = 1033
_CLOSED: Final = 1 | 2 | 4 | 16  # F_SEAL_SEAL, SHRINK, GROW, FUTURE_WRITE

Range = tuple[int, int]
"""The first byte of a run of pages in guest memory, and the byte after its last one."""


def new_memory(name: str, size: int) -> int:
    """The descriptor of a new memfd of ``size`` zeros, which can be sealed; OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


class FrozenMemory:
    """Owns a descriptor of ``size`` bytes of memory that nobody changes any more."""

    def __init__(self, fd: int, size: int) -> None:
        """Take over ``fd``."""
        self.fd = fd
        self.size = size
        self._map: mmap.mmap | None = None

    @property
    def closed(self) -> bool:
        """:meth:`close` was called."""
        return self.fd < 0

    def duplicate(self) -> "FrozenMemory":
        """The same memory with a descriptor of its own; OSError."""
        return FrozenMemory(fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 0), self.size)

    def is_same(self, other: "FrozenMemory") -> bool:
        """Both are the same memory."""
        return os.path.samestat(os.fstat(self.fd), os.fstat(other.fd))

    @property
    def bytes(self) -> memoryview:
        """The memory, to read. Release it before :meth:`close`; OSError."""
        if self._map is None:
            self._map = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ)
            self._map.madvise(mmap.MADV_DONTFORK)
        return memoryview(self._map)

    def ranges(self) -> Iterator[Range]:
        """The ranges that hold data; the rest are zeros. OSError."""
        from pykvm.snapshot.content import data_ranges

        return data_ranges(self.fd, self.size)

    def close(self) -> None:
        """Close the descriptor, once. Private mappings of the memory stay."""
        if self._map is not None:
            with suppress(BufferError):
                self._map.close()
            self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Copy:
    """A memfd that becomes frozen memory. It needs a :meth:`close`."""

    def __init__(self, size: int, parent: FrozenMemory | None = None) -> None:
        """A copy of ``parent``, or zeros. OSError."""
        self.size = size
        self.fd = new_memory("pykvm-snapshot", size)
        self._map: mmap.mmap | None = None
        self._taken: frozenset[Range] = frozenset()
        self._frozen: FrozenMemory | None = None
        if parent is None:
            return
        try:
            with parent.bytes as content:
                self._write(content, parent.ranges())
        except BaseException:
            self.close()
            raise

    def take(self, ram: memoryview, ranges: Iterable[Range]) -> None:
        """Copy ``ranges`` of ``ram``, in which writes may be going on. OSError."""
        ranges = list(ranges)
        self._write(ram, ranges)
        self._taken = frozenset(ranges)
        # The pages are there now. Storing to them takes half the time of a system call.
        self._map = mmap.mmap(self.fd, self.size)
        with memoryview(self._map) as view:
            for start, end in ranges:
                for at in range(start, end, mmap.PAGESIZE):
                    view[at] = view[at]

    def take_again(self, ram: memoryview, ranges: Iterable[Range]) -> None:
        """Copy ``ranges``, of which :meth:`take` knows most, after the last write. OSError."""
        assert self._map is not None
        with memoryview(self._map) as view:
            for one in ranges:
                if one in self._taken:
                    view[one[0] : one[1]] = ram[one[0] : one[1]]
                else:
                    self._write(ram, [one])

    def freeze(self) -> FrozenMemory:
        """The memory. :meth:`close` seals it. OSError."""
        frozen = FrozenMemory(self.fd, self.size)
        self._frozen = frozen.duplicate()
        self.fd = -1
        return frozen

    def close(self) -> None:
        """Drop the copy, or seal it if it was frozen."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._frozen is not None:
            # No mapping writes to it any more. F_SEAL_WRITE would fail while a page is read.
            with suppress(OSError):  # before Linux 5.1
                fcntl.fcntl(self._frozen.fd, _F_ADD_SEALS, _CLOSED)
            self._frozen.close()
            self._frozen = None

    def _write(self, ram: memoryview, ranges: Iterable[Range]) -> None:
        # A store to a mapping without memory for it would raise SIGBUS instead.
        for start, end in ranges:
            at = start
            while at < end:
                at += os.pwrite(self.fd, ram[at:end], at)
