"""One I/O operation: the planner makes it, and an engine executes it. Pure."""

from collections.abc import Sequence

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.hot.words import Longs, longs, zeros

_NONE = longs(())


class Operation:
    """Executed by an engine for one request, for a part of one, or for several merged requests.

    ``kind`` is the VIRTIO_BLK_T_* of its ``members``, which are adjacent on the
    disk: ``length`` bytes from byte ``offset``. The data is in
    ``ram.bytes[offsets[i] : offsets[i] + lengths[i]]`` for i from ``first`` up
    to, not including, ``last``. One system call takes all its segments and
    bytes. A DISCARD or WRITE_ZEROES has no data; ``unmap``: it may free space.
    ``durable``: a write completes only when it is on stable storage. ``left``
    counts the bytes at the end of its only member that have no operation yet;
    they are planned when this operation completes.

    The engine sets the results. ``error`` is an errno or 0. ``moved`` counts the
    bytes that were read, written, discarded or made zeros, which may be fewer
    than ``length`` without an error. ``finished_ns`` is time.monotonic_ns.

    ``waits`` counts the operations that must complete before this one starts;
    ``followers`` are the operations that wait for this one. An operation without
    members is a joint: no engine executes it, and it completes at the moment at
    which it may start.
    """

    members: list[Request]
    kind: int
    offset: int
    length: int
    offsets: Longs
    lengths: Longs
    first: int
    last: int
    unmap: bool
    durable: bool
    left: int
    error: int
    moved: int
    finished_ns: int
    waits: int
    followers: list["Operation"]
    _own_offsets: Longs
    _own_lengths: Longs

    def __init__(self, members: Sequence[Request] = ()) -> None:
        self.members = list(members)
        self.kind = VIRTIO_BLK_T_IN
        self.offset = 0
        self.length = 0
        # For merged requests or a part of one; else ``offsets`` is the request's.
        self._own_offsets = _NONE
        self._own_lengths = _NONE
        self.offsets = _NONE
        self.lengths = _NONE
        self.first = 0
        self.last = 0
        self.unmap = False
        self.durable = False
        self.left = 0
        self.error = 0
        self.moved = 0
        self.finished_ns = 0
        self.waits = 0
        self.followers = []

    def views(self, memory: memoryview) -> list[memoryview]:
        """The data's segments in ``memory``, which is ``ram.bytes``."""
        offsets, lengths = self.offsets, self.lengths
        return [memory[offsets[i] : offsets[i] + lengths[i]] for i in range(self.first, self.last)]

    def make_room(self, segments: int) -> None:
        """Use arrays of its own for this number of segments; their content is undefined."""
        if len(self._own_offsets) < segments:
            self._own_offsets = zeros(segments)
            self._own_lengths = zeros(segments)
        self.offsets, self.lengths = self._own_offsets, self._own_lengths
        self.first, self.last = 0, segments

    def forget(self) -> None:
        """Drop all segments, and the memory for them."""
        self.offsets = self.lengths = _NONE
        self._own_offsets = self._own_lengths = _NONE
        self.first = self.last = 0

    def clip(self, source: "Operation", start: int, length: int) -> None:
        """Become bytes ``[start, start + length)`` of ``source``, which is not this operation.

        Results, ``left``, ``waits`` and ``followers`` are not copied.
        """
        assert source is not self, "an operation cannot become a part of itself"
        assert 0 <= start <= start + length <= source.length, "a part lies within its source"
        self.members[:] = source.members
        self.kind = source.kind
        self.unmap = source.unmap
        self.durable = source.durable
        self.offset = source.offset + start
        self.length = length
        first, end = source.first, start + length
        while first < source.last and start >= source.lengths[first]:
            start -= source.lengths[first]
            end -= source.lengths[first]
            first += 1
        last = first
        while last < source.last and end > 0:
            end -= source.lengths[last]
            last += 1
        # Room for these only: all pieces of a request together need room for its segments once.
        self.make_room(last - first)
        count = 0
        for index in range(first, last):
            taken = min(source.lengths[index] - start, length)
            if not taken:
                continue
            self.offsets[count] = source.offsets[index] + start
            self.lengths[count] = taken
            count += 1
            start = 0
            length -= taken
        self.first, self.last = 0, count
