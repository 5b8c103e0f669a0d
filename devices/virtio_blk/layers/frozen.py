"""Layers of an overlay that do not change any more, shared by any number of disks.

A snapshot freezes the present layer of an overlay. The guest goes on in a new layer
on top, and so does each disk that starts from the snapshot::

    new layer    new layer    new layer       one for each disk
         └────────────┼────────────┘
                 frozen layer                 of a second snapshot
                 frozen layer                 of a first snapshot
                    image

A layer is the overlay's temporary file, or files, and the map of the sectors in them.
To freeze it, the files are handed over; nothing is copied.
"""

import errno
import os
import threading
from collections.abc import Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import SECTOR_SHIFT, SECTOR_SIZE
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.transfer import transfer
from pykvm.devices.virtio_blk.image.allocation import Allocation
from pykvm.devices.virtio_blk.image.file import MAX_SIZE
from pykvm.devices.virtio_blk.layers.sector_map import SectorMap
from pykvm.hot.words import Bytes

MOST_LAYERS: Final = 8
"""With more, the layers are merged into one, because each makes reads slower."""
_PIECE: Final = 1 << 20
_BLOCK: Final = 1 << 12
"""Bytes of a hole of a file, at least."""


class FrozenLayer:
    """The sectors ``map`` of a disk, in ``files``: file k has the bytes from k times ``piece`` on.

    Owned by its users together: the last :meth:`release` closes the files.
    """

    def __init__(self, files: Sequence[int], piece: int, written: SectorMap) -> None:
        """The descriptors ``files`` belong to the layer, which has one user."""
        self.files = tuple(files)
        self.piece = piece
        self.map = written
        self._users = 1
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Count one more user."""
        with self._lock:
            assert self._users, "a layer without users is closed"
            self._users += 1

    def release(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            for file in self.files:
                os.close(file)

    def read(self, part: Operation, memory: Bytes) -> None:
        """Execute ``part``, a read at a place within one file."""
        file, place = divmod(part.offset, self.piece)
        moved = transfer(
            False,
            self.files[file],
            memory,
            part.offsets,
            part.lengths,
            part.first,
            part.last,
            place,
        )
        if moved < 0:
            part.error = -moved
        else:
            part.moved = moved

    def copy(self, first: int, sectors: int, into: "_Target", empty: bool) -> None:
        """Copy ``sectors`` from sector ``first`` on to the same place of ``into``.

        ``empty``: it has nothing there. OSError. Behind the end of a file are zeros.
        """
        at, end = first << SECTOR_SHIFT, first + sectors << SECTOR_SHIFT
        while at < end:
            number, place = divmod(at, self.piece)
            file = self.files[number]
            stop = min(place + end - at, self.piece)
            hole = _data_at(file, place, stop) - place
            if hole:
                into.zero(at, hole, empty)
                at += hole
                continue
            count = min(stop - place, _PIECE)
            data = os.pread(file, count, place) or bytes(count)
            into.write(data, at, empty)
            at += len(data)


def _data_at(file: int, place: int, stop: int) -> int:
    """The next byte from ``place`` on that is in no hole of ``file``; at most ``stop``."""
    try:
        return min(os.lseek(file, place, os.SEEK_DATA), stop)
    except OSError as error:
        return stop if error.errno == errno.ENXIO else place


class _Target:
    """A sparse file into which layers are copied. All methods raise OSError."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._allocation = Allocation(file)

    def write(self, data: bytes, at: int, empty: bool) -> None:
        """Write ``data`` at byte ``at``; blocks of zeros stay holes if the place is ``empty``."""
        if not empty:
            self._write(data, at)
            return
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            if block.count(0) < len(block):
                self._write(block, at + start)

    def zero(self, at: int, length: int, empty: bool) -> None:
        """Make ``length`` bytes from byte ``at`` on zeros, as holes if the filesystem can."""
        error = 0 if empty else self._allocation.zero(at, length, True)
        if error == errno.EOPNOTSUPP:
            for start in range(at, at + length, _PIECE):
                self._write(bytes(min(_PIECE, at + length - start)), start)
        elif error:
            raise OSError(error, os.strerror(error))

    def _write(self, data: bytes, at: int) -> None:
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written


class Layers:
    """The frozen layers of one disk of ``size`` bytes, the lowest first. Immutable.

    They stay until the last disk that uses them is closed, even after :meth:`close`.
    """

    def __init__(self, layers: Sequence[FrozenLayer], size: int) -> None:
        """``layers`` are held once more."""
        self.size = size
        self.layers = tuple(layers)
        for layer in layers:
            layer.hold()
        self._open = True

    def close(self) -> None:
        """Release the layers. May be repeated."""
        if self._open:
            self._open = False
            for layer in self.layers:
                layer.release()


def zeros(size: int) -> FrozenLayer:
    """A layer below all others, for a blank disk of ``size`` bytes. OSError."""
    return FrozenLayer([memory_file(size)], MAX_SIZE, SectorMap(0))


def memory_file(size: int) -> int:
    """A descriptor of a sparse file of ``size`` bytes in memory. OSError."""
    file = os.memfd_create("pykvm-disk", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, size)
    except BaseException:
        os.close(file)
        raise
    return file


def merge(layers: Sequence[FrozenLayer], size: int, into: int) -> SectorMap:
    """Copy the sectors of all ``layers`` of a disk of ``size`` bytes into the empty file ``into``.

    Returns the map of them. OSError.
    """
    capacity = size // SECTOR_SIZE
    merged = SectorMap(capacity)
    target = _Target(into)
    lowest = next((layer for layer in layers if layer.map.chunks()), None)
    for layer in layers:
        if layer.map.end < capacity:
            # The disk was smaller once: what lies behind that end in layers below is gone.
            merged.cut(layer.map.end)
            os.ftruncate(into, layer.map.end << SECTOR_SHIFT)
        for first, count in layer.map.runs():
            sectors = min(count, capacity - first)
            if sectors > 0:
                layer.copy(first, sectors, target, empty=layer is lowest)
                merged.add(first, first + sectors)
    os.ftruncate(into, size)
    return merged
