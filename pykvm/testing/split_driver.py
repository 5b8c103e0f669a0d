"""The driver's side of a split virtqueue, on any RAM, without a guest or a kernel.

:class:`SplitDriver` handles its rings as a Linux driver does (virtio 1.2 §2.7.13,
§2.7.14). On request it breaks the rules::

    driver = SplitDriver(Ram.flat(1 << 20), size=16, features=VIRTIO_F_EVENT_IDX)
    queue = driver.device_queue()              # the other side, for the code under test
    head = driver.send([header], [512, 1])     # device-readable bytes, device-writable lengths
    if driver.publish(): ...                   # the device wants a notification
    for head, length in driver.collect():      # the used heads
        data = driver.response(head)

It puts its rings and a heap into RAM from ``base`` on. A test can also write each part
by hand (:meth:`~RingDriver.write_descriptor`, :meth:`~SplitDriver.offer`,
:attr:`~SplitDriver.avail_index`), so a hostile driver takes a few lines.
:mod:`pykvm.testing.packed_driver` does the same for packed virtqueues.
:mod:`pykvm.testing.fake_transport` adds eventfds and interrupts, to test whole devices.
"""

from collections import deque
from collections.abc import Callable, Sequence

from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Saved
from pykvm.testing.ring_driver import Buffer, RingDriver
from pykvm.virtio.constants import (
    VIRTIO_F_IN_ORDER,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
)
from pykvm.virtio.queue import no_fence
from pykvm.virtio.split import SplitQueue

__all__ = ["Buffer", "SplitDriver"]


class SplitDriver(RingDriver):
    """A driver of a split queue. A head is the number of a chain's first descriptor."""

    def __init__(
        self,
        ram: Ram,
        *,
        size: int = 16,
        features: int = 0,
        base: int = 0x1000,
        heap: int = 0,
        start: int = 0,
        fence: Callable[[], None] = no_fence,
    ) -> None:
        """Lay out the rings at ``base`` (16-byte aligned) and a heap of ``heap`` bytes after them.

        ``heap`` 0 takes the rest of the region of ``base``. ``start`` is the index at
        which both rings begin: 0 for a real driver, other numbers to test the wrap
        at 2^16 (see :meth:`device_queue`). ValueError if it does not fit.
        """
        super().__init__(ram, size, features, base, heap, fence, (6 + 2 * size, 6 + 8 * size))
        self._start = start
        self._published = start
        self._collected = start
        # With IN_ORDER, descriptors are used in the order of the table, cyclically (§2.7.5).
        self._in_order = bool(features & VIRTIO_F_IN_ORDER)
        self._free = deque(range(size))
        self._chains: dict[int, list[int]] = {}
        self._set(self.avail + 2, start)
        self._set(self.used + 2, start)
        self._set(self.used + 4 + 8 * size, start)
        self.avail_index = start
        """The next :meth:`publish` writes this to avail.idx. A test may set any number."""
        self.enable_interrupts()

    def device_queue(self, index: int = 0, fence: Callable[[], None] = no_fence) -> SplitQueue:
        """See RingDriver."""
        args = (self.ram, index, self.size, self.desc, self.avail, self.used)
        queue = SplitQueue(*args, self.features, fence)
        start = {"last_avail": self._start, "used": self._start, "heads": b""}
        queue.load(Saved("queue", start))
        return queue

    def publish(self) -> bool:
        """See RingDriver. Writes avail.idx."""
        new, old = self.avail_index & 0xFFFF, self._published
        self._set(self.avail + 2, new)
        self._published = new
        self._fence()
        if new == old:
            return False
        if self._event_idx:
            event = self._get(self.used + 4 + 8 * self.size)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._get(self.used) & VIRTQ_USED_F_NO_NOTIFY

    def enable_interrupts(self, after: int = 0) -> bool:
        """See RingDriver."""
        if self._event_idx:
            self._set(self.avail + 4 + 2 * self.size, (self._collected + after) & 0xFFFF)
        else:
            self._set(self.avail, 0)
        self._fence()
        return self._get(self.used + 2) != self._collected

    def disable_interrupts(self) -> None:
        """See RingDriver."""
        if not self._event_idx:
            self._set(self.avail, VIRTQ_AVAIL_F_NO_INTERRUPT)

    def spoil(self) -> None:
        """See RingDriver: a head that does not exist."""
        self.offer(0xFFFF)

    def offer(self, head: int) -> None:
        """Put ``head`` (any 16-bit number) into the next slot of the available ring."""
        self._set(self.avail + 4 + 2 * (self.avail_index % self.size), head)
        self.avail_index = (self.avail_index + 1) & 0xFFFF

    def _add(self, chain: Sequence[Buffer], indirect: bool) -> int:
        count = 1 if indirect else len(chain)
        if count > len(self._free):
            raise IndexError("too few free descriptors")
        heads = [self._free.popleft() for _ in range(count)]
        if indirect:
            table = self._put_table(_linked(chain, range(len(chain))))
            self.write_descriptor(heads[0], *table, VIRTQ_DESC_F_INDIRECT, 0)
        else:
            for head, fields in zip(heads, _linked(chain, heads), strict=True):
                self.write_descriptor(head, *fields)
        self._chains[heads[0]] = heads
        self.offer(heads[0])
        return heads[0]

    def _next_used(self) -> tuple[int, int] | None:
        if self._collected == self._get(self.used + 2):
            return None
        slot = self.used + 4 + 8 * (self._collected % self.size)
        head = int.from_bytes(self.ram.read(slot, 4), "little")
        return head, int.from_bytes(self.ram.read(slot + 4, 4), "little")

    def _take_back(self, head: int) -> None:
        self._collected = (self._collected + 1) & 0xFFFF
        heads = self._chains.pop(head)
        if self._in_order:
            self._free.extend(heads)
        else:
            self._free.extendleft(reversed(heads))


def _linked(chain: Sequence[Buffer], places: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The descriptors of ``chain``; each has the place of the next one."""
    linked = []
    for i, buffer in enumerate(chain):
        flags = VIRTQ_DESC_F_WRITE if buffer.writable else 0
        more = i + 1 < len(chain)
        if more:
            flags |= VIRTQ_DESC_F_NEXT
        linked.append((buffer.address, buffer.length, flags, places[i + 1] if more else 0))
    return linked
