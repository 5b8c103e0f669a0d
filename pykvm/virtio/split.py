"""The device's side of a split virtqueue (virtio 1.2 §2.7). Pure.

Mistakes of a driver that only this format knows, and the answer to each; for the others
see :mod:`pykvm.virtio.queue`:

===================================================  ==================================
avail.idx runs ahead by more than the queue size,    BROKEN: the ring's state has no
or backwards (the same thing modulo 2^16)            more meaning. The transport sets
a head ≥ the queue size                              DEVICE_NEEDS_RESET. From then on
a head that is still in flight                       pop() returns no head
---------------------------------------------------  ----------------------------------
``next`` ≥ the queue's or the table's size           CHAIN_BAD_NEXT        no segments:
a loop; more descriptors than the queue or table     CHAIN_TOO_LONG        where the chain
an indirect table in an indirect table               CHAIN_BAD_INDIRECT    ends is unknown
===================================================  ==================================
"""

from collections.abc import Callable

from pykvm.hot.word_watch import Watch
from pykvm.hot.words import LOW_32, U64, Words64
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved
from pykvm.virtio.chain import (
    CHAIN_BAD_INDIRECT,
    CHAIN_BAD_NEXT,
    CHAIN_BAD_ORDER,
    CHAIN_TOO_LONG,
    CHAIN_TOO_MANY_BYTES,
    MAX_CHAIN_BYTES,
    DescriptorChain,
)
from pykvm.virtio.constants import (
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_DESC_SIZE,
    VIRTQ_USED_F_NO_NOTIFY,
)
from pykvm.virtio.geometry import ring_error
from pykvm.virtio.queue import BROKEN, EMPTY, Virtqueue, no_fence, unaligned_table
from pykvm.virtio.saved_heads import unpack_heads


class SplitQueue(Virtqueue):
    """One split virtqueue.

    Heads were popped up to the available index ``last_avail`` and given back up
    to the used index ``used``. Both are modulo 2^16.
    """

    last_avail: int
    used: int
    _mask: int
    _drain_end: int
    _published: int
    _desc: int
    _avail_flags: int
    _avail_idx: int
    _avail_ring: int
    _used_event: int
    _used_flags: int
    _used_idx: int
    _used_ring: int
    _avail_event: int

    def __init__(
        self,
        ram: Ram,
        index: int,
        size: int,
        desc: int,
        avail: int,
        used: int,
        features: int = 0,
        fence: Callable[[], None] = no_fence,
    ) -> None:
        """A queue at index 0 of both rings. ValueError if the geometry cannot work.

        ``desc``, ``avail`` and ``used`` are guest-physical addresses; they must
        have passed :func:`ring_error`. The rest: see :class:`Virtqueue`.
        """
        if reason := ring_error(ram, size, desc, avail, used):
            raise ValueError(reason)
        super().__init__(ram, index, size, features, fence)
        self.last_avail = 0
        self.used = 0
        self._mask = size - 1
        self._drain_end = 0
        self._published = 0
        self._desc = ram.translate(desc, VIRTQ_DESC_SIZE * size)
        at = ram.translate(avail, 6 + 2 * size) // 2
        self._avail_flags, self._avail_idx, self._avail_ring = at, at + 1, at + 2
        self._used_event = at + 2 + size
        at = ram.translate(used, 6 + 8 * size)
        self._used_flags, self._used_idx = at // 2, at // 2 + 1
        self._used_ring = at // 4 + 1
        self._avail_event = at // 2 + 2 + 4 * size

    # -- taking requests ---------------------------------------------------

    def begin_drain(self) -> int:
        """See Virtqueue; the number is exact."""
        if self.error:
            return BROKEN
        available = self._u16[self._avail_idx]
        count = (available - self.last_avail) & 0xFFFF
        if count > self.size - self.in_flight:
            return self._break(
                f"avail.idx is {available} after {self.last_avail}: "
                f"more than {self.size} buffers with {self.in_flight} in use"
            )
        self._drain_end = available
        return count

    def pop(self) -> int:
        """See Virtqueue."""
        last = self.last_avail
        if last == self._drain_end:
            return BROKEN if self.error else EMPTY
        head = self._u16[self._avail_ring + (last & self._mask)]
        if head >= self.size:
            return self._break(f"the available ring names head {head} of {self.size}")
        chain = self.chains[head]
        if chain.in_flight:
            return self._break(f"the available ring names head {head}, which is still in use")
        self.last_avail = (last + 1) & 0xFFFF
        self.in_flight += 1
        chain.in_flight = True
        if self._in_order:
            self._order.append(head)
        self._walk(chain, head)
        return head

    # -- giving heads back -------------------------------------------------

    def _use(self, head: int, length: int, wrote: bool) -> None:
        at = self._used_ring + 2 * (self.used & self._mask)
        self._u32[at] = head
        self._u32[at + 1] = length
        self.used = (self.used + 1) & 0xFFFF

    def publish(self) -> bool:
        """See Virtqueue."""
        new, old = self.used, self._published
        if new == old:
            return False
        self._u16[self._used_idx] = new
        self._published = new
        self._full_fence()
        if self._event_idx:
            event = self._u16[self._used_event]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._u16[self._avail_flags] & VIRTQ_AVAIL_F_NO_INTERRUPT

    # -- notifications -----------------------------------------------------

    def disable_notifications(self) -> None:
        """See Virtqueue."""
        # With EVENT_IDX, an avail_event in the past asks for no notification (§2.7.10).
        if not self._event_idx:
            self._u16[self._used_flags] = VIRTQ_USED_F_NO_NOTIFY

    def enable_notifications(self) -> bool:
        """See Virtqueue."""
        if self._event_idx:
            self._u16[self._avail_event] = self.last_avail
        else:
            self._u16[self._used_flags] = 0
        self._full_fence()
        return not self.error and self._u16[self._avail_idx] != self.last_avail

    def available(self) -> bool:
        """See Virtqueue."""
        return not self.error and self._u16[self._avail_idx] != self.last_avail

    def taken(self) -> int:
        """See Virtqueue."""
        return self.last_avail

    def offered(self) -> int:
        """See Virtqueue."""
        return self._u16[self._avail_idx]

    def watch(self, watch: Watch) -> None:
        """See Virtqueue."""
        if not self.error:
            watch.add(self._u16, self._avail_idx, self.last_avail)

    # -- state -------------------------------------------------------------

    def save(self) -> Fields:
        """See Virtqueue."""
        assert self.used == self._published, "pushed heads are published before a save"
        return {"last_avail": self.last_avail, "used": self.used, "heads": self._save_heads()}

    def load(self, saved: Saved) -> None:
        """See Virtqueue."""
        last, used = saved.integer("last_avail", 0, 0xFFFF), saved.integer("used", 0, 0xFFFF)
        heads = unpack_heads(saved, self.size, self._in_order)
        saved.end()
        if (last - used) & 0xFFFF != len(heads):
            saved.refuse(f"{len(heads)} heads are in flight from {used} to {last}")
        self._load_heads(heads)
        self.last_avail = self._drain_end = last
        self.used = self._published = used

    def _descriptors(self, head: int) -> tuple[int, int]:
        return 0, 1

    def _break(self, reason: str) -> int:
        self._drain_end = self.last_avail
        return Virtqueue._break(self, reason)

    # -- parsing -----------------------------------------------------------

    def _walk(  # noqa: PLR0912, PLR0915 - one loop on local variables: see below
        self, chain: DescriptorChain, head: int
    ) -> None:
        # One loop for the queue's table and an indirect one, without calls, because it takes
        # most of a request's time. Each descriptor is two words, each of them read once.
        address: U64
        length: U64
        start: U64
        end: U64
        words: Words64
        offset: int
        words = self._u64
        start, end, first = self._start, self._end, self._first
        base, at, count = self._desc >> 3, head, self.size
        left = count
        readable = writable = readable_bytes = writable_bytes = error = 0
        indirect = False
        while True:
            address = words[base + 2 * at]
            word = words[base + 2 * at + 1]
            length = word & LOW_32
            flags = word >> 32 & 0xFFFF
            if flags & VIRTQ_DESC_F_INDIRECT:
                nested = indirect or flags & VIRTQ_DESC_F_NEXT
                offset = -1 if nested else self._table(address, length)
                if offset < 0:
                    return chain.clear(CHAIN_BAD_INDIRECT)
                if offset & 7:
                    words, base = unaligned_table(self._bytes, offset, length), 0
                else:
                    base = offset >> 3
                indirect = True
                at = 0
                count = left = length // VIRTQ_DESC_SIZE
                continue
            if length:
                if start <= address < end and address + length <= end:
                    offset = address - start + first
                else:
                    offset = self._ram.translate(address, length)
                last = readable + writable
                if last == chain.room:
                    chain.grow()
                if flags & VIRTQ_DESC_F_WRITE:
                    writable += 1
                    writable_bytes += length
                else:
                    if writable:
                        error = CHAIN_BAD_ORDER
                        last = chain.make_room(readable, last)
                    readable += 1
                    readable_bytes += length
                chain.offsets[last] = offset
                chain.lengths[last] = length
            if not flags & VIRTQ_DESC_F_NEXT:
                break
            left -= 1
            if left == 0:
                return chain.clear(CHAIN_TOO_LONG)
            at = word >> 48
            if at >= count:
                return chain.clear(CHAIN_BAD_NEXT)
        if readable_bytes + writable_bytes > MAX_CHAIN_BYTES:
            error = CHAIN_TOO_MANY_BYTES
        chain.readable, chain.readable_bytes = readable, readable_bytes
        chain.writable, chain.writable_bytes = writable, writable_bytes
        chain.error = error
        return None
