"""One request of the driver (virtio 1.2 §5.2.6), from the ring to its answer. Pure."""

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_OK
from pykvm.hot.words import Longs, longs
from pykvm.virtio.chain import DescriptorChain

TYPE_UNREADABLE = -1
"""``Request.type`` when the header could not be read."""

_NONE = longs(())
_NO_CHAIN = DescriptorChain(0)


class Request:
    """One request, parsed. Preallocated per head; valid until that head is pushed.

    ``type`` is VIRTIO_BLK_T_* or TYPE_UNREADABLE. ``sector`` and ``length``
    (bytes) are the range that it reads or writes, which lies within the disk
    once the request is accepted. Its data lies at
    ``ram.bytes[offsets[i] : offsets[i] + lengths[i]]`` for i from ``first`` up
    to, not including, ``last``; the lengths add up to ``length``. A DISCARD or
    WRITE_ZEROES has ``ranges`` instead of data: byte offset, length and unmap
    (0 or 1) of each, one after another; ``length`` is the sum of their lengths
    and ``sector`` is where the first one begins.
    ``status_offset`` is the place of the status byte, or -1 if it has none.
    ``status`` is the answer, once it is known. ``used_length`` counts the bytes
    written to the chain, from its first device-writable byte on.

    ``chain`` owns the segments and has room for ``room`` of them, unless
    :meth:`keep` gave the request segments of its own.

    The scheduler and the queue's service own the rest: ``started_ns``;
    ``sequence``, the request's place in the order of the ring; ``pending``, the
    operations that the request still waits for; ``error``, the errno of the
    first operation that failed, or 0; ``charged``, true once the rate limits
    were charged for the request.
    """

    head: int
    type: int
    sector: int
    length: int
    offsets: Longs
    lengths: Longs
    chain: DescriptorChain
    room: int
    first: int
    last: int
    ranges: Longs
    status_offset: int
    status: int
    used_length: int
    started_ns: int
    sequence: int
    pending: int
    error: int
    charged: bool

    def __init__(self, head: int) -> None:
        self.head = head
        self.type = TYPE_UNREADABLE
        self.sector = 0
        self.length = 0
        self.offsets = _NONE
        self.lengths = _NONE
        self.chain = _NO_CHAIN
        self.room = 0
        self.first = 0
        self.last = 0
        self.ranges = _NONE
        self.status_offset = -1
        self.status = VIRTIO_BLK_S_OK
        self.used_length = 0
        self.started_ns = 0
        self.sequence = 0
        self.pending = 0
        self.error = 0
        self.charged = False

    def borrow(self, chain: DescriptorChain) -> None:
        """Use the segments of ``chain``, where they are."""
        self.chain = chain
        self.room = chain.room
        self.offsets = chain.offsets
        self.lengths = chain.lengths

    def keep(self, offsets: Longs, lengths: Longs, room: int) -> None:
        """Use these segments, made from a chain with room for ``room``."""
        self.chain = _NO_CHAIN
        self.room = room
        self.offsets = offsets
        self.lengths = lengths

    def forget(self) -> None:
        """Drop all segments, and with them the reference to the chain."""
        self.keep(_NONE, _NONE, 0)
        self.first = self.last = 0
