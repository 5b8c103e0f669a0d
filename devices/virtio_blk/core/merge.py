"""Which requests of one drain are executed together: the merge policies. Pure.

Each policy cuts the requests of one drain into runs. A run is executed as one
operation, and the runs one after another, in the order of the list. A run of
several has one direction, and each of its requests begins on the disk where
the one before ended, so that no two of them overlap.

Executing the runs in their order gives what the order of the ring gives:

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
    """The most that one operation holds: members, segments, and bytes.

    1024 segments are what preadv and pwritev take on Linux (IOV_MAX), and
    0x7ffff000 bytes what they move at once. ``pieces`` is how many operations
    a request too large for one has at a time; more than that keeps no disk
    busier, and a guest must not have us plan thousands for each request.
    """

    requests: int = 32
    segments: int = 1024
    bytes: int = 0x7FFFF000
    pieces: int = 16


def sequential(requests: Sequence[Request], limits: Limits) -> Runs:
    """Neighbours in the list that are neighbours on the disk; ``requests`` are in any order.

    A request that does not continue a run ends it, so none waits for another
    that has nothing to do with it. One that exceeds the limits by itself, a
    flush, a discard and one that writes zeroes are alone.
    """
    most_requests, most_segments, most_bytes = limits.requests, limits.segments, limits.bytes
    runs: Runs = []
    first = index = 0
    kind = end = -1
    segments = length = 0
    for request in requests:
        # No sum here overflows 63 bits: the parser lets nothing pass but sectors below 2^54
        # and lengths up to 2^32, and what is added to them is within the limits.
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

    A flush ends a window of writes. A write that overlaps one of the window
    ends it too, and a discard or one that writes zeroes ends any.
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

    Reads are alone and go ahead of the writes collected so far, unless they
    overlap one of them: then, as with a write that does, these go first. A
    flush, a discard and one that writes zeroes end the batch.
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
    """``count`` requests sorted by sector; those of one sector in the order of insertion."""

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
        """Does ``request`` overlap one of the window, if no two of the window do?

        Then its two neighbours are all that it can overlap.
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
        """All of it; the window is empty then."""
        taken = self._requests
        self._requests = []
        self._sectors.clear()
        self.count = 0
        return taken
