"""The device's side of a split virtqueue (virtio 1.2 §2.7). Pure.

A device's loop over one queue::

    queue.disable_notifications()
    while True:
        queue.begin_drain()                    # what is available now, at most size heads
        while (head := queue.pop()) >= 0:
            chain = queue.chains[head]         # parsed, checked, translated
            ...                                # sooner or later: queue.push(head, length)
        if queue.publish():                    # used.idx, fence, used_event
            interrupt()
        if queue.error:
            broken(queue.error)
            break
        if not queue.enable_notifications():   # avail_event, fence, avail.idx again
            break

Ring memory is the guest's and may change under the reader at any time: every
index and every descriptor is read exactly once, and nothing is written that is
read back. What a hostile or broken driver can do, and what it gets:

===================================================  ==================================
avail.idx runs ahead by more than the queue size,    BROKEN: the ring's state means
or backwards (the same thing modulo 2^16)            nothing any more. The transport
a head ≥ the queue size                              sets DEVICE_NEEDS_RESET. Sticky:
a head that is still in flight                       pop() never returns a head again
---------------------------------------------------  ----------------------------------
device-readable after device-writable (§2.7.4.2)     CHAIN_BAD_ORDER       all segments
more than 2^32 bytes in one chain (§2.7.5)           CHAIN_TOO_MANY_BYTES  are there
---------------------------------------------------  ----------------------------------
``next`` ≥ the queue's or the table's size           CHAIN_BAD_NEXT        no segments:
a loop; more descriptors than the queue or table     CHAIN_TOO_LONG        where the
INDIRECT not negotiated; nested; with NEXT; a table  CHAIN_BAD_INDIRECT    chain ends is
of length 0, not a multiple of 16, more than                               unknown
``indirect_limit`` entries, or not in guest RAM
---------------------------------------------------  ----------------------------------
a buffer that is not guest RAM (hole, MMIO, wrap)    a segment with offset -1, no error
a zero-length descriptor                             no segment, no error
reserved flag bits                                   ignored
WRITE on the descriptor of an indirect table         ignored (§2.7.5.3.2)
===================================================  ==================================

A chain with an error has a valid head, so the device must complete it: with a
status if it still finds where that goes (CHAIN_BAD_ORDER, CHAIN_TOO_MANY_BYTES),
else with ``push(head, 0)``. The ring itself stays usable.

Drivers are told to keep a chain within the queue size (§2.7.5.3.1), but a
block driver's segment limit is its own field and other devices take tables of
1024 data segments whatever the queue size, so an indirect table may hold
``max(queue size, 1026)`` descriptors.

Memory order: x86 keeps loads in order and stores in order, and an interpreter
adds no reordering of its own, so "element before index" needs nothing. What
x86 does not keep is a store before a later load of another address: that is
what ``fence`` is for, see :mod:`pykvm.virtio.fence`.
"""

from collections.abc import Callable

from pykvm.memory.ram import Ram
from pykvm.native import U64, Bytes, Longs, Words16, Words32, Words64
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
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_DESC_SIZE,
    VIRTQ_USED_F_NO_NOTIFY,
)
from pykvm.virtio.geometry import ring_error
from pykvm.virtio.spin import changes

EMPTY = -1
"""pop(): nothing more in this drain."""
BROKEN = -2
"""pop(): the ring is unusable until the device is reset; ``error`` says why."""

MIN_INDIRECT_LIMIT = 1026


def no_fence() -> None:
    """The fence of a ring that only one thread touches."""


class SplitQueue:
    """The device's side of one split virtqueue.

    ``chains[head]`` is the parsed chain of a popped head; ``size`` the number
    of descriptors; ``index`` the queue's number; ``error`` "" or why the queue
    is broken. ``last_avail`` is the available index up to which heads were
    popped and ``used`` the used index up to which they were pushed, both
    modulo 2^16. One thread at a time may use a queue.
    """

    index: int
    size: int
    indirect_limit: int
    error: str
    last_avail: int
    used: int
    in_flight: int
    chains: tuple[DescriptorChain, ...]
    _ram: Ram
    _fence: Callable[[], None]
    _table_limit: U64
    _indirect: bool
    _event_idx: bool
    _mask: int
    _drain_end: int
    _published: int
    _bytes: Bytes
    _u16: Words16
    _u32: Words32
    _u64: Words64
    _start: U64
    _end: U64
    _first: U64
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
        """A queue at index 0 of both rings. The geometry must have passed :func:`ring_error`.

        ``desc``, ``avail`` and ``used`` are guest-physical addresses;
        ``features`` the negotiated bits, of which VIRTIO_F_INDIRECT_DESC and
        VIRTIO_F_EVENT_IDX matter here; ``fence`` orders earlier stores before
        later loads. ValueError if the geometry cannot work.
        """
        if reason := ring_error(ram, size, desc, avail, used):
            raise ValueError(reason)
        self.index = index
        self.size = size
        self.indirect_limit = max(size, MIN_INDIRECT_LIMIT)
        self._table_limit = VIRTQ_DESC_SIZE * self.indirect_limit
        self.error = ""
        self.last_avail = 0
        self.used = 0
        self.in_flight = 0
        self.chains = tuple(DescriptorChain(head) for head in range(size))
        self._ram = ram
        self._fence = fence
        self._indirect = bool(features & VIRTIO_F_INDIRECT_DESC)
        self._event_idx = bool(features & VIRTIO_F_EVENT_IDX)
        self._mask = size - 1
        self._drain_end = 0
        self._published = 0
        self._bytes = ram.bytes
        self._u16 = ram.u16
        self._u32 = ram.u32
        self._u64 = ram.u64
        # The region that most buffers lie in, so that the common translation is two compares.
        first = ram.regions[0]
        self._start, self._end, self._first = first.start, first.end, first.offset
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
        """Look at avail.idx: how many heads :meth:`pop` will give, at most ``size``; or BROKEN.

        A driver that refills the ring meanwhile is served by the next drain,
        so a drain always ends.
        """
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
        """The next head of this drain, with ``chains[head]`` filled in; or EMPTY; or BROKEN."""
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
        self._walk(chain, head)
        return head

    # -- giving them back --------------------------------------------------

    def push(self, head: int, length: int) -> None:
        """Put ``head`` on the used ring: ``length`` bytes were written to it (§2.7.8).

        The driver sees nothing of it before :meth:`publish`. Any order of
        heads is allowed; each popped head exactly once.
        """
        chain = self.chains[head]
        assert chain.in_flight, f"head {head} is not in flight"
        chain.in_flight = False
        self.in_flight -= 1
        at = self._used_ring + 2 * (self.used & self._mask)
        self._u32[at] = head
        self._u32[at + 1] = length if length < MAX_CHAIN_BYTES else MAX_CHAIN_BYTES - 1
        self.used = (self.used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Show the driver what was pushed. True: it wants an interrupt (§2.7.7.2, §2.7.10)."""
        new, old = self.used, self._published
        if new == old:
            return False
        self._u16[self._used_idx] = new
        self._published = new
        self._fence()
        if self._event_idx:
            event = self._u16[self._used_event]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._u16[self._avail_flags] & VIRTQ_AVAIL_F_NO_INTERRUPT

    # -- notifications -----------------------------------------------------

    def disable_notifications(self) -> None:
        """Tell the driver not to notify for now. Only a hint: it may still do so."""
        # With EVENT_IDX an avail_event that was passed asks for nothing (§2.7.10).
        if not self._event_idx:
            self._u16[self._used_flags] = VIRTQ_USED_F_NO_NOTIFY

    def enable_notifications(self) -> bool:
        """Ask the driver to notify from now on. True: more is waiting already, so drain again."""
        if self._event_idx:
            self._u16[self._avail_event] = self.last_avail
        else:
            self._u16[self._used_flags] = 0
        self._fence()
        return not self.error and self._u16[self._avail_idx] != self.last_avail

    def await_available(self, nanoseconds: int) -> bool:
        """Is more waiting, now or within this time? The driver is not asked to notify."""
        return not self.error and changes(self._u16, self._avail_idx, self.last_avail, nanoseconds)

    # -- state -------------------------------------------------------------

    def save(self) -> dict[str, int]:
        """The queue's place in its rings, for a snapshot. Nothing may be in flight."""
        assert not self.in_flight, "a queue is saved when it is quiet"
        return {"last_avail": self.last_avail, "used": self.used}

    def restore(self, state: dict[str, int]) -> str:
        """Go on where :meth:`save` was: "", or why a state, hostile input, is impossible."""
        last, used = state.get("last_avail"), state.get("used")
        if not isinstance(last, int) or not isinstance(used, int):
            return "the queue's state lacks last_avail or used"
        if not 0 <= last <= 0xFFFF or last != used:
            return f"last_avail {last} and used {used} do not belong to a quiet queue"
        self.last_avail = self._drain_end = last
        self.used = self._published = used
        return ""

    def _break(self, reason: str) -> int:
        self.error = f"queue {self.index}: {reason}"
        self._drain_end = self.last_avail
        return BROKEN

    # -- parsing -----------------------------------------------------------

    def _walk(  # noqa: PLR0912, PLR0915 - one loop on local variables: see below
        self, chain: DescriptorChain, head: int
    ) -> None:
        # One loop for the queue's table and an indirect one, without calls: this is most of
        # what a request costs. Each descriptor is two words, each of them read once.
        address: U64
        length: U64
        start: U64
        end: U64
        words: Words64
        offsets: Longs
        lengths: Longs
        offset: int
        words, offsets, lengths = self._u64, chain.offsets, chain.lengths
        start, end, first = self._start, self._end, self._first
        base, at, count = self._desc >> 3, head, self.size
        left = count
        readable = writable = readable_bytes = writable_bytes = error = 0
        indirect = False
        while True:
            address = words[base + 2 * at]
            word = words[base + 2 * at + 1]
            length = word & 0xFFFFFFFF
            flags = word >> 32 & 0xFFFF
            if flags & VIRTQ_DESC_F_INDIRECT:
                offset = -1 if indirect else self._table(address, length, flags)
                if offset < 0:
                    return chain.clear(CHAIN_BAD_INDIRECT)
                if offset & 7:
                    words, base = _copy(self._bytes, offset, length), 0
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
                if last == len(offsets):
                    chain.grow()
                    offsets, lengths = chain.offsets, chain.lengths
                if flags & VIRTQ_DESC_F_WRITE:
                    writable += 1
                    writable_bytes += length
                else:
                    if writable:
                        error = CHAIN_BAD_ORDER
                        last = chain.make_room(readable, last)
                    readable += 1
                    readable_bytes += length
                offsets[last] = offset
                lengths[last] = length
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

    def _table(self, address: U64, length: U64, flags: int) -> int:
        """Where an indirect table is in ``ram.bytes``; -1 if its descriptor is malformed."""
        if flags & VIRTQ_DESC_F_NEXT or not self._indirect:
            return -1
        if not length or length % VIRTQ_DESC_SIZE or length > self._table_limit:
            return -1
        if self._start <= address < self._end and address + length <= self._end:
            return address - self._start + self._first
        return self._ram.translate(address, length)


def _copy(memory: Bytes, offset: int, length: int) -> Words64:
    """A table that is not aligned, where it is."""
    return memoryview(bytearray(memory[offset : offset + length])).cast("Q")
