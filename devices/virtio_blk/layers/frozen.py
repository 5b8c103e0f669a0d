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

import os
import threading
from collections.abc import Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import SECTOR_SHIFT, SECTOR_SIZE
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.transfer import transfer
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

    def copy(self, first: int, sectors: int, into: int, empty: bool) -> None:
        """Copy ``sectors`` from sector ``first`` on to the same place of the file ``into``.

        ``empty``: it has nothing there, so zeros can stay holes. OSError. Behind the end of a
        file are zeros.
        """
        at, end = first << SECTOR_SHIFT, first + sectors << SECTOR_SHIFT
        while at < end:
            file, place = divmod(at, self.piece)
            count = min(end - at, self.piece - place, _PIECE)
            data = os.pread(self.files[file], count, place) or bytes(count)
            if empty:
                for start in range(0, len(data), _BLOCK):
                    block = data[start : start + _BLOCK]
                    if block.count(0) < len(block):
                        write_all(into, block, at + start)
            else:
                write_all(into, data, at)
            at += len(data)


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


def write_all(file: int, data: bytes, at: int) -> None:
    """Write ``data`` at byte ``at`` of ``file``. OSError."""
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


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
    lowest = next((layer for layer in layers if layer.map.chunks()), None)
    for layer in layers:
        if layer.map.end < merged.end:
            # The disk was smaller once: what lies behind that end in layers below is gone.
            merged.cut(layer.map.end)
            os.ftruncate(into, merged.end << SECTOR_SHIFT)
        for first, count in layer.map.runs():
            sectors = min(count, capacity - first)
            if sectors > 0:
                layer.copy(first, sectors, into, empty=layer is lowest)
                merged.add(first, first + sectors)
    os.ftruncate(into, size)
    return merged
