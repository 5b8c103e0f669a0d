"""The device's side of a virtqueue: the common part of both formats (virtio 1.2 §2.6). Pure.

A device's loop over one queue::

    queue.disable_notifications()
    while True:
        queue.begin_drain()                    # at most size heads from here on
        while (head := queue.pop()) >= 0:
            chain = queue.chains[head]         # parsed, checked, translated
            ...                                # now or later: queue.push(head, length)
        if queue.publish():                    # the driver sees them and wants an interrupt
            interrupt()
        if queue.error:
            broken(queue.error)
            break
        if not queue.enable_notifications():   # True: more heads wait already
            break

:mod:`pykvm.virtio.split` and :mod:`pykvm.virtio.packed` are the two formats. The
guest can change ring memory at any time. So both formats read every index and every
descriptor exactly once, and never read back what they wrote. The mistakes that a
hostile or broken driver can make in both formats, and the answer to each:

===================================================  ==================================
device-readable after device-writable (§2.7.4.2)     CHAIN_BAD_ORDER       all segments
more than 2^32 bytes in one chain (§2.7.5)           CHAIN_TOO_MANY_BYTES  are there
---------------------------------------------------  ----------------------------------
INDIRECT not negotiated; with NEXT; a table of       CHAIN_BAD_INDIRECT    no segments
length 0, not a multiple of 16, more than
``indirect_limit`` entries, or not in guest RAM
---------------------------------------------------  ----------------------------------
a buffer that is not guest RAM (hole, MMIO, wrap)    a segment with offset -1, no error
a zero-length descriptor                             no segment, no error
reserved flag bits                                   ignored
WRITE on the descriptor of an indirect table         ignored (§2.7.5.3.2, §2.8.7)
===================================================  ==================================

A chain with an error has a valid head, so the device must complete it: with a
status if the status byte can still be found (CHAIN_BAD_ORDER, CHAIN_TOO_MANY_BYTES),
else with ``push(head, 0)``. The ring stays usable.

A driver must keep a chain within the queue size (§2.7.5.3.1). But a block driver's
segment limit is a separate field, and other implementations of the device take tables
of 1024 data segments with any queue size. So an indirect table may hold
``max(queue size, 1026)`` descriptors.

Memory order: x86 keeps loads in order and stores in order, and an interpreter
adds no reordering of its own, so "element before index" needs no fence. But x86
may move a load before an earlier store to a different address. ``fence`` prevents
that (:mod:`pykvm.virtio.fence`).
"""

from collections import deque
from collections.abc import Callable

from pykvm.hot import cython_stub as cython
from pykvm.hot.word_watch import Watch
from pykvm.hot.words import U64, Bytes, Words16, Words32, Words64
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved
from pykvm.virtio.chain import MAX_CHAIN_BYTES, DescriptorChain
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_DESC_SIZE,
)
from pykvm.virtio.saved_heads import SavedHead, pack_heads

if cython.compiled:
    from cython.cimports.c_calls import full_fence

COMPILED: bool = cython.compiled
"""True in the compiled form (speed/README.md), whose queues have a fence of their own."""

EMPTY = -1
"""pop(): this drain has no more heads."""
BROKEN = -2
"""pop(): the ring is unusable until the device is reset; ``error`` says why."""

MIN_INDIRECT_LIMIT = 1026


def no_fence() -> None:
    """The fence of a ring that only one thread touches."""


class Virtqueue:
    """The common part of both formats, which implement the methods that only raise here.

    One thread at a time uses a queue.

    ``chains[head]`` is the parsed chain of a popped head; ``size`` the number
    of descriptors; ``index`` the queue's number; ``error`` "" or why the queue
    is broken; ``in_flight`` the number of heads that were popped and not pushed.
    """

    index: int
    size: int
    indirect_limit: int
    error: str
    in_flight: int
    chains: tuple[DescriptorChain, ...]
    _ram: Ram
    _fence: Callable[[], None] | None
    _table_limit: U64
    _indirect: bool
    _event_idx: bool
    _in_order: bool
    _order: deque[int]
    _done: dict[int, tuple[int, bool]]
    _bytes: Bytes
    _u16: Words16
    _u32: Words32
    _u64: Words64
    _start: U64
    _end: U64
    _first: U64

    def __init__(
        self, ram: Ram, index: int, size: int, features: int, fence: Callable[[], None]
    ) -> None:
        """``fence`` orders earlier stores before later loads.

        ``features`` are the negotiated bits. INDIRECT_DESC, EVENT_IDX and IN_ORDER matter here.
        """
        self.index = index
        self.size = size
        self.indirect_limit = max(size, MIN_INDIRECT_LIMIT)
        self._table_limit = VIRTQ_DESC_SIZE * self.indirect_limit
        self.error = ""
        self.in_flight = 0
        self.chains = tuple(DescriptorChain(head) for head in range(size))
        self._ram = ram
        self._fence = None if fence is no_fence else fence
        self._indirect = bool(features & VIRTIO_F_INDIRECT_DESC)
        self._event_idx = bool(features & VIRTIO_F_EVENT_IDX)
        self._in_order = bool(features & VIRTIO_F_IN_ORDER)
        # With IN_ORDER: heads in flight, in the order of pop(), and heads that were pushed early.
        self._order = deque()
        self._done = {}
        self._bytes = ram.bytes
        self._u16 = ram.u16
        self._u32 = ram.u32
        self._u64 = ram.u64
        # Most buffers lie in the first region. With its bounds at hand, a translation is two
        # comparisons.
        first = ram.regions[0]
        self._start, self._end, self._first = first.start, first.end, first.offset

    # -- taking requests ---------------------------------------------------

    def begin_drain(self) -> int:
        """Begin a drain: the largest number of heads that :meth:`pop` can give, or BROKEN.

        The number is at most ``size``. If the driver refills the ring meanwhile,
        the next drain takes the new heads, so each drain ends.
        """
        raise NotImplementedError

    def pop(self) -> int:
        """The next head of this drain, with ``chains[head]`` filled in; or EMPTY; or BROKEN."""
        raise NotImplementedError

    # -- giving heads back -------------------------------------------------

    def push(self, head: int, length: int, wrote: bool = False) -> None:
        """Give ``head`` back, with ``length`` bytes written to it (§2.7.8, §2.8.4).

        ``length`` counts from the first device-writable byte to the first gap.
        The device may have written bytes behind the gap (§2.7.8.2). ``wrote``
        tells that it wrote any; a packed ring tells the driver.
        The driver sees the head only after :meth:`publish`. Push each popped
        head exactly once, in any order; with IN_ORDER the driver gets them in
        the order of :meth:`pop` nevertheless (§2.7.9).
        """
        chain = self.chains[head]
        assert chain.in_flight, f"head {head} is not in flight"
        if self._in_order:
            self._use_in_order(head, length, wrote)
        else:
            chain.in_flight = False
            self.in_flight -= 1
            self._use(head, length if length < MAX_CHAIN_BYTES else MAX_CHAIN_BYTES - 1, wrote)

    def publish(self) -> bool:
        """Show the driver all pushed heads. True: it wants an interrupt (§2.7.7.2, §2.8.10)."""
        raise NotImplementedError

    # -- notifications -----------------------------------------------------

    def disable_notifications(self) -> None:
        """Ask the driver not to notify for now. This is a hint, which it may ignore."""
        raise NotImplementedError

    def enable_notifications(self) -> bool:
        """Ask the driver to notify from now on. True: more heads wait already, so drain again."""
        raise NotImplementedError

    def available(self) -> bool:
        """True if more heads wait."""
        raise NotImplementedError

    def taken(self) -> int:
        """The number of heads that were popped, modulo 2^16; -1 if the format does not count."""
        return -1

    def offered(self) -> int:
        """The number of heads that the driver has made available, as :meth:`taken` counts."""
        return -1

    def watch(self, watch: Watch) -> None:
        """Give ``watch`` the word that changes when more heads wait.

        If they wait already, the word counts as changed.
        """
        raise NotImplementedError

    # -- state -------------------------------------------------------------

    def save(self) -> Fields:
        """The queue's place in its rings, and its heads in flight. Not within a drain.

        All pushed heads have to be published.
        """
        raise NotImplementedError

    def load(self, saved: Saved) -> None:
        """Go on where the queue of :meth:`save` was. SnapshotError.

        Its heads in flight are in flight again. ``chains`` has no segments of theirs.
        """
        raise NotImplementedError

    def waiting(self) -> frozenset[int]:
        """The heads in flight that were not pushed yet."""
        done = self._done
        return frozenset([c.head for c in self.chains if c.in_flight and c.head not in done])

    def _save_heads(self) -> bytes:
        in_flight = [chain.head for chain in self.chains if chain.in_flight]
        heads: list[SavedHead] = []
        for head in self._order if self._in_order else in_flight:
            length, wrote = self._done.get(head, (0, False))
            length = min(length, MAX_CHAIN_BYTES - 1)
            heads.append(
                SavedHead(head, head in self._done, wrote, length, *self._descriptors(head))
            )
        return pack_heads(heads)

    def _load_heads(self, heads: list[SavedHead]) -> None:
        for chain in self.chains:
            chain.in_flight = False
        self._order.clear()
        self._done.clear()
        self.error = ""
        self.in_flight = len(heads)
        for head, done, wrote, length, _, _ in heads:
            self.chains[head].in_flight = True
            if self._in_order:
                self._order.append(head)
            if done:
                self._done[head] = (length, bool(wrote))

    # -- for the formats ---------------------------------------------------

    def _descriptors(self, head: int) -> tuple[int, int]:
        """The buffer id of ``head``, which is in flight, and the number of its descriptors."""
        raise NotImplementedError

    def _full_fence(self) -> None:
        """Order all earlier stores before all later loads."""
        if cython.compiled:
            full_fence()
        if self._fence is not None:
            self._fence()

    def _use(self, head: int, length: int, wrote: bool) -> None:
        """Write the used element of ``head``, which is no longer in flight."""
        raise NotImplementedError

    def _use_in_order(self, head: int, length: int, wrote: bool) -> None:
        """Keep ``head`` until all heads that were popped before it are done."""
        assert head not in self._done, f"head {head} is not in flight"
        self._done[head] = (length, wrote)
        while self._order and self._order[0] in self._done:
            first = self._order.popleft()
            self.chains[first].in_flight = False
            self.in_flight -= 1
            length, wrote = self._done.pop(first)
            self._use(first, min(length, MAX_CHAIN_BYTES - 1), wrote)

    def _break(self, reason: str) -> int:
        self.error = f"queue {self.index}: {reason}"
        return BROKEN

    def _table(self, address: U64, length: U64) -> int:
        """Offset of an indirect table in ``ram.bytes``; -1 if its descriptor is malformed."""
        if not self._indirect:
            return -1
        if not length or length % VIRTQ_DESC_SIZE or length > self._table_limit:
            return -1
        return self._translate(address, length)

    def _translate(self, address: U64, length: U64) -> int:
        """As :meth:`Ram.translate`."""
        if self._start <= address < self._end and address + length <= self._end:
            return address - self._start + self._first
        return self._ram.translate(address, length)


def unaligned_table(memory: Bytes, offset: int, length: int) -> Words64:
    """A copy of a table that is not aligned to its words."""
    return memoryview(bytearray(memory[offset : offset + length])).cast("Q")
