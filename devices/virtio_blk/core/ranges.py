"""The segments of DISCARD and WRITE_ZEROES: ranges of the disk (virtio 1.2 §5.2.6). Pure."""

from struct import Struct
from typing import Final, NamedTuple

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
)
from pykvm.hot.words import Longs, longs

MAX_RANGES: Final = 32
"""``max_discard_seg`` and ``max_write_zeroes_seg``: all ranges of a request are planned at once."""
MAX_SECTORS: Final = 1 << 22
"""``max_discard_sectors`` and ``max_write_zeroes_sectors``: 2 GiB, to bound the time of a range."""

RANGE_SIZE: Final = 16
_SEGMENT = Struct("<QII")  # struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags


class Ranges(NamedTuple):
    """The ranges in the segments of a request, or the ``status`` that refuses them.

    ``extents`` has the byte offset, length and unmap (0 or 1) of each range that
    is not empty, one after another. ``length`` is the sum of their lengths.
    """

    status: int
    extents: Longs = longs(())
    length: int = 0


def read_ranges(data: bytes, discard: bool, unmaps: bool, capacity: int, block: int) -> Ranges:
    """The ranges in ``data``, which are whole segments, for a disk of ``capacity`` sectors.

    ``unmaps``: ranges may free space. ``block``: the sectors in a block; a range
    consists of whole blocks. An unknown flag decides over any other mistake.
    """
    extents: list[int] = []
    length = 0
    status = VIRTIO_BLK_S_OK
    for sector, sectors, flags in _SEGMENT.iter_unpack(data):
        if flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP or (flags and discard):
            return Ranges(VIRTIO_BLK_S_UNSUPP)
        inside = sector + sectors <= capacity and sectors <= MAX_SECTORS
        if not inside or sector % block or sectors % block:
            status = VIRTIO_BLK_S_IOERR
        elif sectors:
            unmap = unmaps and (discard or flags)
            extents += (sector << SECTOR_SHIFT, sectors << SECTOR_SHIFT, 1 if unmap else 0)
            length += sectors << SECTOR_SHIFT
    return Ranges(status) if status else Ranges(status, longs(extents), length)
