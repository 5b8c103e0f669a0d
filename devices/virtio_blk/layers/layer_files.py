"""The layers of a disk as two files in a snapshot's folder: ``NAME.data`` and ``NAME.map``.

``NAME.data`` is as large as the disk and sparse; it has the written sectors at their
places. ``NAME.map`` tells which these are::

    header    magic, version, bytes of the disk, the map's end (SectorMap.end)
    chunks    number of the chunk, and a bit for each of its sectors; ascending

A snapshot is hostile input: the map is checked before anything is made of it.
"""

import os
from pathlib import Path
from struct import Struct
from typing import Final, NoReturn

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.image.file import MAX_SIZE
from pykvm.devices.virtio_blk.layers.frozen import FrozenLayer, Layers, merge
from pykvm.devices.virtio_blk.layers.sector_map import CHUNK, SectorMap
from pykvm.errors import reason_of
from pykvm.snapshot.folder import OpenFolder

MAGIC: Final = b"pykvmlyr"
VERSION: Final = 1
_HEADER: Final = Struct("<8sQQQ")
_INDEX: Final = Struct("<Q")
_BITS: Final = CHUNK // 8


def write_layers(layers: Layers, folder: Path, name: str) -> None:
    """Write ``layers``, merged into one, as new files in ``folder``, and sync them. OSError."""
    with open(folder / f"{name}.data", "xb", buffering=0) as data:
        written = merge(layers.layers, layers.size, data.fileno())
        os.fsync(data.fileno())
    with open(folder / f"{name}.map", "xb") as file:
        file.write(_HEADER.pack(MAGIC, VERSION, layers.size, written.end))
        for index, bits in written.chunks():
            file.write(_INDEX.pack(index) + bits.to_bytes(_BITS, "little"))
        file.flush()
        os.fsync(file.fileno())


def open_layers(folder: OpenFolder, name: str) -> Layers:
    """The layers that :func:`write_layers` wrote. They belong to the caller. SnapshotError."""
    size, written = _read_map(folder, f"{name}.map")
    file = folder.open(f"{name}.data")
    layer = FrozenLayer([file], MAX_SIZE, written)
    try:
        if os.fstat(file).st_size != size:
            raise folder.unreadable(f"{name}.data: it does not have {size} bytes")
        return Layers([layer], size)
    finally:
        layer.release()


def _read_map(folder: OpenFolder, name: str) -> tuple[int, SectorMap]:
    """The bytes of the disk, and the map."""

    def refuse(reason: str) -> NoReturn:
        raise folder.unreadable(f"{name}: {reason}") from None

    try:
        with open(folder.open(name), "rb") as file:
            magic, version, size, end = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size))
            if magic != MAGIC:
                refuse("it is no map of sectors")
            if version != VERSION:
                refuse(f"it has format {version}, this pykvm reads {VERSION}")
            capacity = size // SECTOR_SIZE
            if size % SECTOR_SIZE or not 0 < size <= MAX_SIZE or end > capacity:
                refuse(f"a disk cannot have {size} bytes, and a map that ends at {end}")
            written = SectorMap(end)
            least, most = 0, -(-capacity // CHUNK)
            # One by one: a hostile file may be very long.
            while record := file.read(_INDEX.size + _BITS):
                if len(record) < _INDEX.size + _BITS:
                    refuse("it ends too early")
                (index,) = _INDEX.unpack_from(record)
                bits = int.from_bytes(record[_INDEX.size :], "little")
                if not least <= index < most:
                    refuse(f"its chunk {index} is out of order")
                if not bits or bits.bit_length() > capacity - index * CHUNK:
                    refuse(f"its chunk {index} has impossible sectors")
                written.set_chunk(index, bits)
                least = index + 1
    except OSError as error:
        refuse(reason_of(error))
    return size, written
