"""A disk's image that takes on one state after the other, for programs that check it."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from pykvm.crash.model import Frontier
from pykvm.crash.states import State
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.errors import UsageError, reason_of
from pykvm.host.write import write_all

_MAP_NORESERVE = 0x4000  # Python names it from 3.13 on
_PIECE = 1 << 18
"""Bytes that are compared at a time."""


class WorkingCopy:
    """A copy of a base image in memory, with its holes. A context manager.

    A program may write to the file at ``path`` while it checks a state. The next state does not
    see that. The file keeps its size.
    """

    def __init__(self, base: Path | str, size: int) -> None:
        """``size``: bytes of the disk. UsageError if ``base`` is shorter or cannot be read."""
        with ExitStack() as owned:
            try:
                with Path(base).open("rb") as file:
                    if os.fstat(file.fileno()).st_size < size:
                        raise UsageError(f"the base image {base} is shorter than the disk was")
                    # In files of our own, because the user's may become shorter: SIGBUS.
                    original = _copy(file.fileno(), size)
                    owned.callback(os.close, original)
                    self._fd = _copy(file.fileno(), size)
                    owned.callback(os.close, self._fd)
                self._base = _mapping(original, size, mmap.MAP_SHARED)
                owned.callback(self._base.close)
                # The state that the image should have, unless a program has changed it.
                self._wanted = _mapping(original, size, mmap.MAP_PRIVATE | _MAP_NORESERVE)
                owned.callback(self._wanted.close)
                self._work = _mapping(self._fd, size, mmap.MAP_SHARED)
                owned.callback(self._work.close)
            except OSError as error:
                reason = reason_of(error)
                raise UsageError(f"the base image {base} cannot be used: {reason}") from None
            self._owned = owned.pop_all()
        self._size = size
        self._frontier: Frontier | None = None
        self._changed: dict[int, bytes] = {}
        self._ranges = list(_data(self._fd, size))
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def base(self, sector: int) -> bytes:
        """See :data:`pykvm.crash.model.Base`."""
        return self._base[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE]

    def take_on(self, state: State) -> None:
        """Give the image the content of ``state``, whatever a program has written to it."""
        frontier = state.frontier
        before = self._frontier.stable if self._frontier else {}
        old = self._changed.keys() if frontier is self._frontier else before | self._changed
        wanted = {sector: frontier.stable.get(sector) or self.base(sector) for sector in old}
        if frontier is not self._frontier:
            wanted |= frontier.stable
        wanted |= state.changes
        for sector, data in wanted.items():
            self._wanted[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = data
            self._work[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = data
        self._frontier, self._changed = frontier, state.changes
        self._undo_the_program()

    def close(self) -> None:
        """Free the memory. May be repeated."""
        self._owned.close()

    def _undo_the_program(self) -> None:
        """Restore all pieces in which the image differs from the wanted state."""
        # A program may have made holes where there was data, or data where there was a hole.
        now = list(_data(self._fd, self._size))
        for start, end in sorted({*self._ranges, *now}):
            for at in range(start, end, _PIECE):
                piece = slice(at, min(at + _PIECE, end))
                wanted = self._wanted[piece]
                if self._work[piece] != wanted:
                    self._work[piece] = wanted
        self._ranges = list(_data(self._fd, self._size))


def _copy(source: int, size: int) -> int:
    """A file in memory with the first ``size`` bytes of ``source``, which keeps this size."""
    fd = os.memfd_create("pykvm crash state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        for at, end in _data(source, size):
            for place in range(at, end, _PIECE):
                os.lseek(fd, place, os.SEEK_SET)
                write_all(fd, os.pread(source, min(_PIECE, end - place), place))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def _mapping(fd: int, size: int, flags: int) -> mmap.mmap:
    return mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of a file that are no holes."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, min(end, size)
        at = end
