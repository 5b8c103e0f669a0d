"""The device's side of a packed virtqueue (virtio 1.2 §2.8). Pure.

Both sides write one ring of descriptors. Each side has a wrap counter, which starts
at 1 and flips with each round. A descriptor is available if its AVAIL flag equals the
device's counter and its USED flag does not. It is used if both flags equal it. Heads
are numbers that this module assigns. A buffer id belongs to the driver: the device
returns it unread.

Mistakes of a driver that only this format knows, and the answer to each; for the others
see :mod:`pykvm.virtio.queue`:

===================================================  ==================================
more available descriptors than the driver owns      BROKEN: the next list begins at
a list that continues with an unavailable            the end of this one, which is
descriptor, or is longer than the driver's           unknown
descriptors
---------------------------------------------------  ----------------------------------
INDIRECT in a list of several descriptors            CHAIN_BAD_INDIRECT    no segments
---------------------------------------------------  ----------------------------------
any buffer id, even of a buffer in flight            accepted: it is the driver's
INDIRECT and NEXT within an indirect table           ignored (§2.8.7)
===================================================  ==================================

Flags, id and length of a descriptor are one word. Each event suppression structure
(§2.8.10) is one word, too. A word is read once, and written at once.
"""

from collections.abc import Callable

from pykvm.hot.word_watch import Watch
from pykvm.hot.words import LOW_32, U64, Longs, Words64, longs
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved
from pykvm.virtio.chain import CHAIN_BAD_INDIRECT, DescriptorChain
from pykvm.virtio.constants import (
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
    VIRTQ_DESC_F_AVAIL,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_USED,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_DESC_SIZE,
    VIRTQ_EVENT_SUPPRESS_SIZE,
)
from pykvm.virtio.geometry import packed_ring_error
from pykvm.virtio.queue import BROKEN, EMPTY, Virtqueue, no_fence, unaligned_table
from pykvm.virtio.saved_heads import unpack_heads

WRAP = 1 << 15
"""The bit of the wrap counter beside a position, in event suppression and saved states."""


class PackedQueue(Virtqueue):
    """One packed virtqueue."""

    _desc: int
    _driver: int
    _device: int
    _at: int
    _turn: int
    _used_at: int
    _used_flags: int
    _free: int
    _left: int
    _heads: Longs
    _ids: Longs
    _counts: Longs
    _held: int
    _held_word: U64
    _unpublished: int

    def __init__(
        self,
        ram: Ram,
        index: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        features: int = 0,
        fence: Callable[[], None] = no_fence,
    ) -> None:
        """A queue at the start of its ring. ValueError if the geometry cannot work.

        ``desc``, ``driver`` and ``device`` are guest-physical addresses of the
        ring and of the two event suppression structures; they must have passed
        :func:`packed_ring_error`. The rest: see :class:`Virtqueue`.
        """
        if reason := packed_ring_error(ram, size, desc, driver, device):
            raise ValueError(reason)
        super().__init__(ram, index, size, features, fence)
        # Words: a descriptor has two, its address, then length, id << 32 and flags << 48.
        self._desc = ram.translate(desc, VIRTQ_DESC_SIZE * size) // 8
        self._driver = ram.translate(driver, VIRTQ_EVENT_SUPPRESS_SIZE) // 4
        self._device = ram.translate(device, VIRTQ_EVENT_SUPPRESS_SIZE) // 4
        # The next descriptor to take, and the flags that make it available; the next used
        # descriptor to write, and its flags.
        self._at, self._turn = 0, VIRTQ_DESC_F_AVAIL
        self._used_at, self._used_flags = 0, VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED
        self._free = size  # descriptors that the driver owns
        self._left = 0  # heads in this drain
        # From index in_flight on: the heads that are not in flight. For each head in flight:
        # its buffer id, and its number of descriptors.
        self._heads = longs(range(size))
        self._ids = longs([0] * size)
        self._counts = longs([0] * size)
        # The first used descriptor since publish(). It is written last, because the driver
        # reads the ring in order.
        self._held = -1
        self._held_word = 0
        self._unpublished = 0  # descriptors used since publish()

    # -- taking requests ---------------------------------------------------

    def begin_drain(self) -> int:
        """See Virtqueue."""
        if self.error:
            return BROKEN
        self._left = self.size
        return self._left

    def pop(self) -> int:
        """See Virtqueue."""
        if not self._left:
            return BROKEN if self.error else EMPTY
        at = self._desc + 2 * self._at
        word = self._u64[at + 1]
        flags = word >> 48
        if not self._is_available(flags):
            return EMPTY
        if not self._free:
            return self._break(f"more than {self.size} descriptors are available")
        head = self._heads[self.in_flight]
        chain = self.chains[head]
        chain.clear()
        if flags & VIRTQ_DESC_F_INDIRECT and not flags & VIRTQ_DESC_F_NEXT:
            self._advance()
            self._walk_table(chain, self._u64[at], word & LOW_32)
            self._ids[head], self._counts[head] = word >> 32 & 0xFFFF, 1
        elif not self._walk(chain, head, word):
            return BROKEN
        self._left -= 1
        self._free -= self._counts[head]
        self.in_flight += 1
        chain.in_flight = True
        if self._in_order:
            self._order.append(head)
        return head

    # -- giving heads back -------------------------------------------------

    def _use(self, head: int, length: int, wrote: bool) -> None:
        word: U64
        self._heads[self.in_flight] = head
        at, count = self._used_at, self._counts[head]
        word = self._used_flags
        if length or wrote:
            word |= VIRTQ_DESC_F_WRITE
        word = word << 48 | self._ids[head] << 32 | length
        if self._held < 0:
            self._held, self._held_word = at, word
        else:
            self._u64[self._desc + 2 * at + 1] = word
        self._free += count
        self._unpublished += count
        at += count
        if at >= self.size:
            at -= self.size
            self._used_flags ^= VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED
        self._used_at = at

    def publish(self) -> bool:
        """See Virtqueue."""
        if self._held < 0:
            return False
        self._u64[self._desc + 2 * self._held + 1] = self._held_word
        self._held = -1
        count = self._unpublished
        self._unpublished = 0
        self._full_fence()
        wanted = self._u32[self._driver]
        flags = wanted >> 16 & 3
        if flags != RING_EVENT_FLAGS_DESC or not self._event_idx:
            return flags != RING_EVENT_FLAGS_DISABLE
        # As in §2.7.10, with positions of the present round instead of indices. Bit 15 is the
        # wrap counter, both in the driver's structure and in the flags of used descriptors.
        event = wanted & 0x7FFF
        if (wanted ^ self._used_flags) & VIRTQ_DESC_F_USED:
            event -= self.size
        return (self._used_at - event - 1) & 0xFFFF < count

    # -- notifications -----------------------------------------------------

    def disable_notifications(self) -> None:
        """See Virtqueue."""
        self._u32[self._device] = RING_EVENT_FLAGS_DISABLE << 16

    def enable_notifications(self) -> bool:
        """See Virtqueue."""
        if self._event_idx:
            self._u32[self._device] = RING_EVENT_FLAGS_DESC << 16 | _position(self._at, self._turn)
        else:
            self._u32[self._device] = RING_EVENT_FLAGS_ENABLE << 16
        self._full_fence()
        return self.available()

    def available(self) -> bool:
        """See Virtqueue."""
        return not self.error and self._is_available(self._u16[self._flags_at()])

    def watch(self, watch: Watch) -> None:
        """See Virtqueue."""
        if not self.error:
            place = self._flags_at()
            flags = self._u16[place]
            # A descriptor that is available already must count as changed.
            watch.add(self._u16, place, flags ^ 0xFFFF if self._is_available(flags) else flags)

    def _flags_at(self) -> int:
        return 4 * (self._desc + 2 * self._at) + 7

    # -- state -------------------------------------------------------------

    def save(self) -> Fields:
        """See Virtqueue. Positions have their wrap counters in bit 15."""
        assert self._held < 0, "pushed heads are published before a save"
        return {
            "last_avail": _position(self._at, self._turn),
            "used": _position(self._used_at, self._used_flags),
            "heads": self._save_heads(),
        }

    def load(self, saved: Saved) -> None:
        """See Virtqueue."""
        last, used = saved.integer("last_avail", 0, 0xFFFF), saved.integer("used", 0, 0xFFFF)
        heads = unpack_heads(saved, self.size, self._in_order)
        saved.end()
        taken = sum([head.descriptors for head in heads])
        at, used_at = last & ~WRAP, used & ~WRAP
        if max(at, used_at) >= self.size:
            saved.refuse(f"a place does not lie in a ring of {self.size}")
        # In two rounds, because the wrap counters differ if the places are in different rounds.
        between = at - used_at + (self.size if (last ^ used) & WRAP else 0)
        if between != taken or taken > self.size:
            saved.refuse(f"{taken} descriptors are in flight from {used} to {last}")
        self._load_heads(heads)
        self._at, self._used_at = at, used_at
        self._turn = VIRTQ_DESC_F_AVAIL if last & WRAP else VIRTQ_DESC_F_USED
        self._used_flags = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED if used & WRAP else 0
        self._free = self.size - taken
        busy = [one.head for one in heads]
        free = [head for head in range(self.size) if not self.chains[head].in_flight]
        self._heads = longs(busy + free)
        for one in heads:
            self._ids[one.head], self._counts[one.head] = one.id, one.descriptors

    def _descriptors(self, head: int) -> tuple[int, int]:
        return self._ids[head], self._counts[head]

    def _break(self, reason: str) -> int:
        self._left = 0
        return Virtqueue._break(self, reason)

    # -- parsing -----------------------------------------------------------

    def _is_available(self, flags: int) -> bool:
        """True if the next descriptor is available with these flags."""
        return flags & (VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED) == self._turn

    def _advance(self) -> None:
        self._at += 1
        if self._at == self.size:
            self._at = 0
            self._turn ^= VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED

    def _walk(self, chain: DescriptorChain, head: int, word: U64) -> bool:
        """Take the list that begins with the next descriptor; False if the ring is broken.

        ``word`` is the second word of that descriptor.
        """
        indirect = False
        count = 1
        while True:
            flags = word >> 48
            if flags & VIRTQ_DESC_F_INDIRECT:
                indirect = True
            self._add(chain, self._u64[self._desc + 2 * self._at], word)
            self._advance()
            if not flags & VIRTQ_DESC_F_NEXT:
                break
            if count == self._free:
                self._break(f"a list does not end within the driver's {count} descriptors")
                return False
            count += 1
            word = self._u64[self._desc + 2 * self._at + 1]
            if not self._is_available(word >> 48):
                self._break("a list continues with a descriptor that is not available")
                return False
        self._ids[head], self._counts[head] = word >> 32 & 0xFFFF, count
        if indirect:
            chain.clear(CHAIN_BAD_INDIRECT)
        return True

    def _walk_table(self, chain: DescriptorChain, address: U64, length: U64) -> None:
        words: Words64
        offset = self._table(address, length)
        if offset < 0:
            chain.clear(CHAIN_BAD_INDIRECT)
            return
        if offset & 7:
            words, base = unaligned_table(self._bytes, offset, length), 0
        else:
            words, base = self._u64, offset >> 3
        for at in range(base, base + length // 8, 2):
            self._add(chain, words[at], words[at + 1])

    def _add(self, chain: DescriptorChain, address: U64, word: U64) -> None:
        length: U64
        length = word & LOW_32
        if length:
            writable = word >> 48 & VIRTQ_DESC_F_WRITE != 0
            chain.add(self._translate(address, length), length, writable)


def _position(at: int, turn: int) -> int:
    """A position and its wrap counter in one number, as in event suppression (§2.8.10)."""
    return at | (turn & VIRTQ_DESC_F_AVAIL) << 8
