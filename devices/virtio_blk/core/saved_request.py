"""Requests without an answer in a snapshot: as they were parsed. Pure.

The guest may have changed the descriptors of a request since, so a snapshot holds the
request itself. A snapshot is hostile input: a request that is loaded obeys the rules by
which a :class:`~pykvm.devices.virtio_blk.core.parser.RequestParser` accepts one, but for
the capacity, which :meth:`Schedule.resume` checks.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.core.parser import Accepted
from pykvm.devices.virtio_blk.core.ranges import MAX_RANGES, MAX_SECTORS
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.hot.words import longs
from pykvm.memory.ram import Region
from pykvm.snapshot.fields import Fields, Saved
from pykvm.virtio.chain import MAX_CHAIN_BYTES

_SEGMENT: Final = Struct("<QQ")
_RANGE: Final = Struct("<QQQ")
_MOST_SECTORS: Final = 1 << 54
_END: Final = 1 << 63
"""No disk has a byte here."""
_RANGED: Final = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES)


class RequestRules(NamedTuple):
    """The rules for the requests of one queue.

    Data lie in ``regions`` of guest RAM, in at most ``segments`` segments. The disk may be
    ``readonly``, and consists of blocks of ``block`` bytes. ``accepted`` as in RequestParser.
    """

    regions: Sequence[Region]
    segments: int
    readonly: bool
    block: int
    accepted: Accepted


def save_request(request: Request) -> Fields:
    """The fields of ``request``, which was accepted and has no answer."""
    segments = [
        _SEGMENT.pack(request.offsets[index], request.lengths[index])
        for index in range(request.first, request.last)
    ]
    ranges = request.ranges if request.type in _RANGED else ()
    return {
        "head": request.head,
        "type": request.type,
        "sector": request.sector,
        "status_offset": request.status_offset,
        "charged": bool(request.charged),
        "segments": b"".join(segments),
        "ranges": b"".join([word.to_bytes(8, "little") for word in ranges]),
    }


def load_request(saved: Saved, size: int, rules: RequestRules) -> Request:
    """A new request that is like the saved one, of a queue with ``size`` heads.

    SnapshotError if no driver can have made it.
    """
    request = Request(saved.integer("head", 0, size - 1))
    request.type = saved.integer("type", 0, VIRTIO_BLK_T_WRITE_ZEROES)
    request.sector = saved.integer("sector", 0, _MOST_SECTORS)
    request.status_offset = saved.integer("status_offset", 0, 1 << 62)
    request.charged = saved.flag("charged")
    data = saved.data("segments", 0, _SEGMENT.size * rules.segments)
    ranges = saved.data("ranges", 0, _RANGE.size * MAX_RANGES)
    saved.end()
    if not _allowed(request.type, rules):
        saved.refuse(f"the disk does not accept requests of type {request.type}")
    if not _within(request.status_offset, 1, rules.regions):
        saved.refuse("status_offset does not lie in guest RAM")
    if request.type in _RANGED:
        _load_ranges(saved, request, ranges, rules.block)
    elif ranges:
        saved.refuse("ranges is not empty")
    _load_segments(saved, request, data, rules)
    return request


def _load_segments(saved: Saved, request: Request, data: bytes, rules: RequestRules) -> None:
    if len(data) % _SEGMENT.size:
        saved.refuse("segments ends within a segment")
    segments = list(_SEGMENT.iter_unpack(data))
    if not all(length and _within(at, length, rules.regions) for at, length in segments):
        saved.refuse("segments names a place that is not guest RAM")
    length = sum([one[1] for one in segments])
    if request.type in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT):
        if not 0 < length <= MAX_CHAIN_BYTES or length % rules.block:
            saved.refuse(f"segments has {length} bytes")
        start = request.sector << SECTOR_SHIFT
        if start & rules.block - 1 or start + length >= _END:
            saved.refuse(f"sector {request.sector} does not begin a block of a disk")
        request.length = length
    elif segments:
        saved.refuse("segments is not empty")
    elif request.type == VIRTIO_BLK_T_FLUSH:
        request.sector = request.length = 0
    request.keep(
        longs([one[0] for one in segments]), longs([one[1] for one in segments]), len(segments)
    )
    request.first, request.last = 0, len(segments)


def _load_ranges(saved: Saved, request: Request, data: bytes, block: int) -> None:
    if not data or len(data) % _RANGE.size:
        saved.refuse("ranges ends within a range")
    length = 0
    words: list[int] = []
    for start, count, unmap in _RANGE.iter_unpack(data):
        if not 0 < count <= MAX_SECTORS << SECTOR_SHIFT or start + count >= _END:
            saved.refuse("ranges names an impossible range")
        if start % block or count % block or unmap > 1:
            saved.refuse("ranges names a range that is not made of blocks")
        words += (start, count, unmap)
        length += count
    request.ranges = longs(words)
    request.sector = words[0] >> SECTOR_SHIFT
    request.length = length


def _allowed(kind: int, rules: RequestRules) -> bool:
    accepted = rules.accepted
    return {
        VIRTIO_BLK_T_IN: True,
        VIRTIO_BLK_T_OUT: not rules.readonly,
        VIRTIO_BLK_T_FLUSH: True,
        VIRTIO_BLK_T_DISCARD: accepted.discards and accepted.unmaps and not rules.readonly,
        VIRTIO_BLK_T_WRITE_ZEROES: accepted.zeroes and not rules.readonly,
    }.get(kind, False)


def _within(offset: int, length: int, regions: Sequence[Region]) -> bool:
    """The bytes at ``offset`` in the buffer of guest RAM lie within one region."""
    return any(
        region.offset <= offset and offset + length <= region.offset + region.size
        for region in regions
    )
