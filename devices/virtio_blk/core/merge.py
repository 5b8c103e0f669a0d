"""The merge policies: they decide which requests of one drain are executed together. Pure.

Each policy cuts the requests of one drain into runs. One operation executes a
run, and the runs are executed in the order of the list. All requests of a run
have one direction, and each begins on the disk where the previous one ends, so
no two of them overlap.

Executing the runs in order has the same effect as executing the requests in the
order of the ring:

- two requests that overlap, one of them a write, keep their order;
- a flush stays behind every write that was queued before it.

docs/explanation/merging.md has the history of the policies and a picture.
"""

from bisect import bisect_right
from collections.abc import Sequence

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.lean.records import record

Runs = list[Sequence[Request]]


@record
class Limits:
    """The most requests, segments and bytes in one operation.

    On Linux, preadv and pwritev take 1024 segments (IOV_MAX) and move 0x7ffff000
    bytes at once. A request that is too large for one operation has at most
    ``pieces`` operations at a time. More would keep no disk busier, and a guest
    could make the planner plan thousands for each request.
    """

    requests: int = 32
    segments: int = 1024
    bytes: int = 0x7FFFF000
    pieces: int = 16


def sequential(requests: Sequence[Request], limits: Limits) -> Runs:
    """Runs of neighbours in the list that are neighbours on the disk, too.

    ``requests`` are in any order. A request that does not continue a run ends
    it, so no request waits for an unrelated one. A request that exceeds the
    limits alone, a flush, a discard and a request that writes zeroes each have
    a run of their own.
    """
    most_requests, most_segments, most_bytes = limits.requests, limits.segments, limits.bytes
    runs: Runs = []
    first = index = 0
    kind = end = -1
    segments = length = 0
    for request in requests:
        # No sum here overflows 63 bits: the parser accepts only sectors below 2^54 and lengths
        # up to 2^32, and the limits bound the other terms.
        if (
            request.sector == end
            and request.type == kind
            and index - first < most_requests
            and segments + request.last - request.first <= most_segments
            and length + request.length <= most_bytes
        ):
            segments += request.last - request.first
            length += request.length
            end += request.length >> SECTOR_SHIFT
        else:
            if index:
                runs.append(requests[first:index])
            first = index
            kind = request.type
            segments = request.last - request.first
            length = request.length
            end = -1
            if kind <= VIRTIO_BLK_T_OUT:
                end = request.sector + (length >> SECTOR_SHIFT)
        index += 1
    if index:
        runs.append(requests[first:index])
    return runs


def sorted_window(requests: Sequence[Request], limits: Limits) -> Runs:
    """Up to ``limits.requests`` of one direction at a time, sorted by sector.

    A flush ends a window of writes, and so does a write that overlaps a write of
    the window. A discard or a request that writes zeroes ends any window.
    """
    runs: Runs = []
    window = _Window()
    direction = VIRTIO_BLK_T_IN
    for request in requests:
        kind = request.type
        if kind > VIRTIO_BLK_T_OUT:
            if direction == VIRTIO_BLK_T_OUT or kind != VIRTIO_BLK_T_FLUSH:
                runs += sequential(window.take(), limits)
            runs.append((request,))
            continue
        if (
            kind != direction
            or window.count == limits.requests
            or (kind == VIRTIO_BLK_T_OUT and window.overlaps(request))
        ):
            runs += sequential(window.take(), limits)
            direction = kind
        window.insert(request)
    runs += sequential(window.take(), limits)
    return runs


def sorted_batch(requests: Sequence[Request], limits: Limits) -> Runs:
    """Up to ``limits.requests`` writes at a time, sorted by sector.

    Each read has a run of its own, ahead of the writes collected so far. But a
    read or a write that overlaps one of those writes ends the batch, and so does
    a flush, a discard or a request that writes zeroes: the batch goes first then.
    """
    runs: Runs = []
    batch = _Window()
    for request in requests:
        kind = request.type
        full = kind == VIRTIO_BLK_T_OUT and batch.count == limits.requests
        if full or kind > VIRTIO_BLK_T_OUT or batch.overlaps(request):
            runs += sequential(batch.take(), limits)
        if kind == VIRTIO_BLK_T_OUT:
            batch.insert(request)
        else:
            runs.append((request,))
    runs += sequential(batch.take(), limits)
    return runs


class _Window:
    """``count`` requests sorted by sector; those of the same sector in the order of insertion."""

    count: int
    _requests: list[Request]
    _sectors: list[int]

    def __init__(self) -> None:
        self.count = 0
        self._requests = []
        self._sectors = []

    def insert(self, request: Request) -> None:
        place = bisect_right(self._sectors, request.sector)
        self._requests.insert(place, request)
        self._sectors.insert(place, request.sector)
        self.count += 1

    def overlaps(self, request: Request) -> bool:
        """True if ``request`` overlaps one of the window.

        No two of the window overlap, so only its two neighbours can overlap ``request``.
        """
        place = bisect_right(self._sectors, request.sector)
        if place:
            before: Request
            before = self._requests[place - 1]
            if before.sector + (before.length >> SECTOR_SHIFT) > request.sector:
                return True
        if place == self.count:
            return False
        return request.sector + (request.length >> SECTOR_SHIFT) > self._sectors[place]

    def take(self) -> list[Request]:
        """All requests of the window, which is empty afterwards."""
        taken = self._requests
        self._requests = []
        self._sectors.clear()
        self.count = 0
        return taken
