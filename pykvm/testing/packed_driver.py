"""The driver's side of a packed virtqueue; see :mod:`pykvm.testing.split_driver`."""

from collections.abc import Callable, Sequence

from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Saved
from pykvm.testing.ring_driver import Buffer, RingDriver
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
from pykvm.virtio.packed import WRAP, PackedQueue
from pykvm.virtio.queue import no_fence

_USED = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED


class PackedDriver(RingDriver):
    """A driver of a packed queue. A head is a buffer id.

    ``ids`` are the free buffer ids, any 16-bit numbers. The last one is used next.
    """

    def __init__(
        self,
        ram: Ram,
        *,
        size: int = 16,
        features: int = 0,
        base: int = 0x1000,
        heap: int = 0,
        start: int = WRAP,
        fence: Callable[[], None] = no_fence,
    ) -> None:
        """As SplitDriver. ``start`` is the position at which both sides begin, with its wrap
        counter in bit 15.
        """
        areas = VIRTQ_EVENT_SUPPRESS_SIZE, VIRTQ_EVENT_SUPPRESS_SIZE
        super().__init__(ram, size, features, base, heap, fence, areas)
        self._start = start
        self.ids = list(range(size - 1, -1, -1))
        self._counts: dict[int, int] = {}
        self._free = size
        self._next_at = self._used_at = start & ~WRAP
        self._wrap = self._used_wrap = bool(start & WRAP)
        # The address of the flags of the first descriptor since publish(), and their new value.
        self._held: tuple[int, int] | None = None
        self._added = 0
        for index in range(size):  # as the device would have left them
            last = self._wrap if index < self._next_at else not self._wrap
            self.write_descriptor(index, 0, 0, 0, _USED if last else 0)
        self.enable_interrupts()

    def device_queue(self, index: int = 0, fence: Callable[[], None] = no_fence) -> PackedQueue:
        """See RingDriver."""
        args = (self.ram, index, self.size, self.desc, self.avail, self.used)
        queue = PackedQueue(*args, self.features, fence)
        start = {"last_avail": self._start, "used": self._start, "heads": b""}
        queue.load(Saved("queue", start))
        return queue

    def publish(self) -> bool:
        """See RingDriver. Writes the flags of the first descriptor that was added."""
        if self._held:
            self._set(*self._held)
            self._held = None
        added, self._added = self._added, 0
        self._fence()
        wanted = self.ram.u32[self.ram.translate(self.used, 4) // 4]
        flags = wanted >> 16
        if not added or flags == RING_EVENT_FLAGS_DISABLE:
            return False
        if flags != RING_EVENT_FLAGS_DESC:
            return True
        event = wanted & 0x7FFF
        if bool(wanted & WRAP) != self._wrap:
            event -= self.size
        return (self._next_at - event - 1) & 0xFFFF < added

    def enable_interrupts(self, after: int = 0) -> bool:
        """See RingDriver; ``after`` counts descriptors."""
        if self._event_idx:
            at = self._used_at + after
            wrap = self._used_wrap ^ (at >= self.size)
            self._ask(RING_EVENT_FLAGS_DESC, at % self.size | (WRAP if wrap else 0))
        else:
            self._ask(RING_EVENT_FLAGS_ENABLE)
        self._fence()
        return self._next_used() is not None

    def disable_interrupts(self) -> None:
        """See RingDriver."""
        self._ask(RING_EVENT_FLAGS_DISABLE)

    def spoil(self) -> None:
        """See RingDriver: a list without an end."""
        for _ in range(self._free):
            self.offer(0, 1, 0, VIRTQ_DESC_F_NEXT)

    def offer(self, address: int, length: int, buffer_id: int, flags: int = 0) -> None:
        """Fill the next descriptor and make it available, once published."""
        at = self.desc + VIRTQ_DESC_SIZE * self._next_at
        flags |= VIRTQ_DESC_F_AVAIL if self._wrap else VIRTQ_DESC_F_USED
        before = self._get(at + 14)
        held = not self._added
        self.write_descriptor(self._next_at, address, length, buffer_id, before if held else flags)
        if held:
            self._held = at + 14, flags
        self._added += 1
        self._next_at += 1
        if self._next_at == self.size:
            self._next_at = 0
            self._wrap = not self._wrap

    def _ask(self, flags: int, event: int = 0) -> None:
        self.ram.u32[self.ram.translate(self.avail, 4) // 4] = flags << 16 | event

    def _add(self, chain: Sequence[Buffer], indirect: bool) -> int:
        count = 1 if indirect else len(chain)
        if count > self._free:
            raise IndexError("too few free descriptors")
        self._free -= count
        head = self.ids.pop()
        self._counts[head] = count
        flags = [VIRTQ_DESC_F_WRITE if buffer.writable else 0 for buffer in chain]
        if indirect:
            places = zip(chain, flags, strict=True)
            table = self._put_table([(b.address, b.length, 0, flag) for b, flag in places])
            self.offer(*table, head, VIRTQ_DESC_F_INDIRECT)
            return head
        for i, (buffer, flag) in enumerate(zip(chain, flags, strict=True)):
            more = VIRTQ_DESC_F_NEXT if i + 1 < count else 0
            self.offer(buffer.address, buffer.length, head, flag | more)
        return head

    def _next_used(self) -> tuple[int, int] | None:
        at = self.desc + VIRTQ_DESC_SIZE * self._used_at
        if self._get(at + 14) & _USED != (_USED if self._used_wrap else 0):
            return None
        written = self._get(at + 14) & VIRTQ_DESC_F_WRITE
        length = int.from_bytes(self.ram.read(at + 8, 4), "little")
        return self._get(at + 12), length if written else 0

    def _take_back(self, head: int) -> None:
        count = self._counts.pop(head)
        self._free += count
        self.ids.append(head)
        self._used_at += count
        if self._used_at >= self.size:
            self._used_at -= self.size
            self._used_wrap = not self._used_wrap
