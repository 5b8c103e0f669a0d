"""A descriptor chain as a device sees it: parsed, checked and translated. Pure.

:class:`pykvm.virtio.queue.Virtqueue` fills chains in. The head of that file, and of
the files of the two formats, has a table of mistakes and the answer to each.
"""

from typing import Final

from pykvm.hot.words import Longs, zeros

CHAIN_OK = 0
CHAIN_BAD_ORDER = 1
CHAIN_TOO_MANY_BYTES = 2
CHAIN_BAD_NEXT = 3
CHAIN_TOO_LONG = 4
CHAIN_BAD_INDIRECT = 5

CHAIN_ERRORS = (
    "no error",
    "a device-readable descriptor follows a device-writable one",
    "the chain has more than 2^32 bytes",
    "a descriptor's next field is out of range",
    "the chain is a loop or longer than the queue",
    "an indirect descriptor or its table is malformed",
)
"""The text for each ``DescriptorChain.error``."""

MAX_CHAIN_BYTES = 1 << 32

_ROOM: Final = 4
"""Initial room, in segments: enough for header, data and status."""
ROOM_KEPT: Final = 256
"""Room for more segments than this is freed after a request. Otherwise a driver could make each
entry of its queue occupy the largest possible room for ever. Linux needs more only if
``seg_max`` is larger."""


class DescriptorChain:
    """One chain, parsed. Its queue owns one for each head, and each pop of the head overwrites it.

    ``offsets[i]`` and ``lengths[i]`` describe segment i: first ``readable``
    device-readable segments, then ``writable`` device-writable ones, in chain
    order. Both have ``room`` entries; those from ``readable + writable`` on are
    stale. An offset is an index into ``ram.bytes``, or -1 for a range that is
    not guest RAM. A length is in bytes, and never 0. ``readable_bytes`` and
    ``writable_bytes`` are the sums of lengths, including segments at -1.
    ``error`` is CHAIN_OK or the code of a mistake.

    Valid from pop() to push() of the same head.
    """

    head: int
    in_flight: bool
    readable: int
    writable: int
    readable_bytes: int
    writable_bytes: int
    error: int
    room: int
    offsets: Longs
    lengths: Longs

    def __init__(self, head: int) -> None:
        self.head = head
        self.in_flight = False
        self.readable = 0
        self.writable = 0
        self.readable_bytes = 0
        self.writable_bytes = 0
        self.error = CHAIN_OK
        self.room = _ROOM
        self.offsets = zeros(_ROOM)
        self.lengths = zeros(_ROOM)

    def clear(self, error: int = CHAIN_OK) -> None:
        """Remove all segments, and set ``error``."""
        self.readable = self.writable = 0
        self.readable_bytes = self.writable_bytes = 0
        self.error = error

    def add(self, offset: int, length: int, writable: bool) -> None:
        """Append a segment of ``length`` bytes, more than 0."""
        last = self.readable + self.writable
        if last == self.room:
            self.grow()
        if writable:
            self.writable += 1
            self.writable_bytes += length
        else:
            if self.writable:
                self.error = CHAIN_BAD_ORDER
                last = self.make_room(self.readable, last)
            self.readable += 1
            self.readable_bytes += length
        self.offsets[last] = offset
        self.lengths[last] = length
        if self.readable_bytes + self.writable_bytes > MAX_CHAIN_BYTES:
            self.error = CHAIN_TOO_MANY_BYTES

    def grow(self) -> None:
        """Double the room."""
        room = self.room
        offsets, lengths = self.offsets, self.lengths
        self.room = 2 * room
        self.offsets = zeros(2 * room)
        self.lengths = zeros(2 * room)
        self.offsets[:room] = offsets
        self.lengths[:room] = lengths

    def shrink(self) -> None:
        """Remove all segments, and return to the initial room."""
        self.clear()
        self.room = _ROOM
        self.offsets = zeros(_ROOM)
        self.lengths = zeros(_ROOM)

    def make_room(self, index: int, end: int) -> int:
        """Shift the segments from ``index`` to ``end`` (exclusive) up by one; ``index``."""
        self.offsets[index + 1 : end + 1] = self.offsets[index:end]
        self.lengths[index + 1 : end + 1] = self.lengths[index:end]
        return index
