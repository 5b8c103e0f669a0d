"""The device's side of a virtqueue, whatever its format (virtio 1.2 §2.6). Pure.

A device's loop over one queue::

    queue.disable_notifications()
    while True:
        queue.begin_drain()                    # at most size heads from here on
        while (head := queue.pop()) >= 0:
            chain = queue.chains[head]         # parsed, checked, translated
            ...                                # sooner or later: queue.push(head, length)
        if queue.publish():                    # the driver sees them, and wants to be told
            interrupt()
        if queue.error:
            broken(queue.error)
            break
        if not queue.enable_notifications():   # ask the driver to notify, look again
            break

:mod:`pykvm.virtio.split` and :mod:`pykvm.virtio.packed` are the two formats. Ring
memory is the guest's and may change under the reader at any time: both read every
index and every descriptor exactly once, and nothing is written that is read back.
What a hostile or broken driver can do in either, and what it gets:

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

from collections import deque
from collections.abc import Callable

from pykvm.hot import cython_stub as cython
from pykvm.hot.word_watch import Watch
from pykvm.hot.words import U64, Bytes, Words16, Words32, Words64
from pykvm.memory.ram import Ram
from pykvm.virtio.chain import MAX_CHAIN_BYTES, DescriptorChain
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_DESC_SIZE,
)

if cython.compiled:
    from cython.cimports.c_calls import full_fence

COMPILED: bool = cython.compiled
"""Is this the compiled form (speed/README.md)? Its queues have a fence of their own."""

EMPTY = -1
"""pop(): nothing more in this drain."""
BROKEN = -2
"""pop(): the ring is unusable until the device is reset; ``error`` says why."""

MIN_INDIRECT_LIMIT = 1026


def no_fence() -> None:
    """The fence of a ring that only one thread touches."""


class Virtqueue:
    """What both formats share; the methods that only raise are theirs. One thread at a time.

    ``chains[head]`` is the parsed chain of a popped head; ``size`` the number
    of descriptors; ``index`` the queue's number; ``error`` "" or why the queue
    is broken; ``in_flight`` how many heads the driver has not got back.
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
        """``features`` are the negotiated bits, ``fence`` orders earlier stores before later loads.

        Of the bits INDIRECT_DESC, EVENT_IDX and IN_ORDER matter here.
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
        # With IN_ORDER: heads in flight as they were popped, and those that are done too early.
        self._order = deque()
        self._done = {}
        self._bytes = ram.bytes
        self._u16 = ram.u16
        self._u32 = ram.u32
        self._u64 = ram.u64
        # The region that most buffers lie in, so that the common translation is two compares.
        first = ram.regions[0]
        self._start, self._end, self._first = first.start, first.end, first.offset

    # -- taking requests ---------------------------------------------------

    def begin_drain(self) -> int:
        """How many heads :meth:`pop` will give at most, never more than ``size``; or BROKEN.

        A driver that refills the ring meanwhile is served by the next drain,
        so a drain always ends.
        """
        raise NotImplementedError

    def pop(self) -> int:
        """The next head of this drain, with ``chains[head]`` filled in; or EMPTY; or BROKEN."""
        raise NotImplementedError

    # -- giving them back --------------------------------------------------

    def push(self, head: int, length: int, wrote: bool = False) -> None:
        """Give ``head`` back: ``length`` bytes were written to it (§2.7.8, §2.8.4).

        These are the first ones that a device may write, without a gap; it may
        have written others (§2.7.8.2). ``wrote``: it wrote some, whatever
        ``length`` is, which a packed ring tells the driver.
        The driver sees nothing of it before :meth:`publish`. Any order of
        heads is allowed, each popped head exactly once; with IN_ORDER the
        driver gets them in the order of :meth:`pop` all the same (§2.7.9).
        """
        chain = self.chains[head]
        assert chain.in_flight, f"head {head} is not in flight"
        if self._in_order:
            self._in_turn(head, length, wrote)
        else:
            chain.in_flight = False
            self.in_flight -= 1
            self._use(head, length if length < MAX_CHAIN_BYTES else MAX_CHAIN_BYTES - 1, wrote)

    def publish(self) -> bool:
        """Show the driver what was pushed. True: it wants an interrupt (§2.7.7.2, §2.8.10)."""
        raise NotImplementedError

    # -- notifications -----------------------------------------------------

    def disable_notifications(self) -> None:
        """Tell the driver not to notify for now. Only a hint: it may still do so."""
        raise NotImplementedError

    def enable_notifications(self) -> bool:
        """Ask the driver to notify from now on. True: more is waiting already, so drain again."""
        raise NotImplementedError

    def available(self) -> bool:
        """Is more waiting?"""
        raise NotImplementedError

    def watch(self, watch: Watch) -> None:
        """Give ``watch`` the word that changes when more is waiting, or has changed if it is."""
        raise NotImplementedError

    # -- state -------------------------------------------------------------

    def save(self) -> dict[str, int]:
        """The queue's place in its rings, for a snapshot. Nothing may be in flight."""
        raise NotImplementedError

    def restore(self, state: dict[str, int]) -> str:
        """Go on where :meth:`save` was: "", or why a state, hostile input, is impossible."""
        raise NotImplementedError

    # -- for the formats ---------------------------------------------------

    def _full_fence(self) -> None:
        """Order all stores until now before all loads from now on."""
        if cython.compiled:
            full_fence()
        if self._fence is not None:
            self._fence()

    def _use(self, head: int, length: int, wrote: bool) -> None:
        """Write the used element of ``head``, which is no longer in flight."""
        raise NotImplementedError

    def _in_turn(self, head: int, length: int, wrote: bool) -> None:
        """Keep ``head`` until all that were popped before it are done too."""
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
        """Where an indirect table is in ``ram.bytes``; -1 if its descriptor is malformed."""
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
