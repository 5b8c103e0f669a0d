"""The driver's side of a split virtqueue, on any RAM: no guest, no kernel.

:class:`MockDriver` does what a Linux driver does to its rings (virtio 1.2
§2.7.13, §2.7.14), and on request what no driver should::

    driver = MockDriver(Ram.flat(1 << 20), size=16, features=VIRTIO_F_EVENT_IDX)
    queue = driver.device_queue()              # the other side, for the code under test
    head = driver.send([header], [512, 1])     # device-readable bytes, device-writable lengths
    if driver.publish(): ...                   # the device asked to be notified
    for head, length in driver.collect():      # what the device used
        data = driver.response(head)

It lays its rings and a heap into RAM from ``base`` on. Everything that it
writes can also be written by hand (:meth:`~MockDriver.write_descriptor`,
:meth:`~MockDriver.offer`, :attr:`~MockDriver.avail_index`), so a hostile
driver is a few lines. :mod:`pykvm.testing.mock_transport` adds eventfds and
interrupts to test whole devices.
"""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

from pykvm.memory.ram import Ram
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
from pykvm.virtio.split import SplitQueue, no_fence

_DESC = Struct("<QIHH")


class Buffer(NamedTuple):
    """One element of a chain: guest-physical address, bytes, and whether the device writes it."""

    address: int
    length: int
    writable: bool


class MockDriver:
    """Owns one queue's rings and a heap in ``ram``, as a driver would.

    ``desc``, ``avail`` and ``used`` are the guest-physical addresses for the
    transport; ``end`` is the first address after what this driver uses.
    ``outstanding`` maps each head in flight to its buffers.
    """

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

        ``heap`` 0 takes the rest of the region that holds ``base``. ``start``
        is the index at which both rings begin (a real driver has 0; others
        test the wrap at 2^16, see :meth:`device_queue`). ValueError if it does
        not fit.
        """
        self.ram = ram
        self.size = size
        self.features = features
        self.desc = base
        self.avail = base + VIRTQ_DESC_SIZE * size
        self.used = _align(self.avail + 6 + 2 * size, 4)
        self._heap = _align(self.used + 6 + 8 * size, 64)
        region = next((r for r in ram.regions if r.start <= base < r.end), None)
        if region is None or base % 16 or self._heap + heap > region.end:
            raise ValueError(f"no room for {size} descriptors and {heap} bytes at {base:#x}")
        self.end = self._heap + heap if heap else region.end
        self._next = self._heap
        self._fence = fence
        self._event_idx = bool(features & VIRTIO_F_EVENT_IDX)
        self._start = start
        self._published = start
        self._collected = start
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._answers: dict[int, list[Buffer]] = {}
        self.outstanding: dict[int, list[Buffer]] = {}
        ram.write(base, bytes(self._heap - base))
        self._set(self.avail + 2, start)
        self._set(self.used + 2, start)
        self._set(self.used + 4 + 8 * size, start)
        self.avail_index = start
        """What the next :meth:`publish` writes to avail.idx; may be set to anything."""
        self.enable_interrupts()

    # -- setting up the other side -----------------------------------------

    def device_queue(self, index: int = 0, fence: Callable[[], None] = no_fence) -> SplitQueue:
        """The device's side of these rings, at the same start index."""
        args = (self.ram, index, self.size, self.desc, self.avail, self.used)
        queue = SplitQueue(*args, self.features, fence)
        assert queue.restore({"last_avail": self._start, "used": self._start}) == ""
        return queue

    def alloc(self, length: int, align: int = 16) -> int:
        """The guest-physical address of ``length`` free bytes; MemoryError if the heap is full.

        The heap empties itself when a chain is added while none is in flight,
        so a response is readable until then.
        """
        address = _align(self._next, align)
        if address + length > self.end:
            raise MemoryError(f"the mock driver's heap has no {length} bytes left")
        self._next = address + length
        return address

    def put(self, data: bytes) -> int:
        """The guest-physical address of a copy of ``data``."""
        address = self.alloc(len(data))
        self.ram.write(address, data)
        return address

    # -- adding chains -----------------------------------------------------

    def send(
        self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool | None = None
    ) -> int:
        """Add a chain of fresh buffers, one descriptor each; its head. See :meth:`add`.

        ``readable`` is what the device reads, ``writable`` the lengths of
        what it writes (filled with 0xAA, so that unwritten bytes show).
        """
        self._recycle()
        chain = [Buffer(self.put(data), len(data), False) for data in readable]
        chain += [Buffer(self.put(b"\xaa" * length), length, True) for length in writable]
        return self.add(chain, indirect=indirect)

    def add(self, chain: Sequence[Buffer], *, indirect: bool | None = None) -> int:
        """Make ``chain`` available, unpublished; its head.

        ``indirect`` None uses a table if the feature was negotiated and the
        chain has more than one element, as Linux does. IndexError if too few
        descriptors are free. Nothing about the chain is checked.
        """
        if indirect is None:
            indirect = bool(self.features & VIRTIO_F_INDIRECT_DESC) and len(chain) > 1
        if indirect:
            table = self.alloc(VIRTQ_DESC_SIZE * len(chain))
            for i, buffer in enumerate(chain):
                more = i + 1 < len(chain)
                _write(self.ram, table, i, buffer, VIRTQ_DESC_F_NEXT if more else 0, i + 1)
            heads = [self._take()]
            length = VIRTQ_DESC_SIZE * len(chain)
            self.write_descriptor(heads[0], table, length, VIRTQ_DESC_F_INDIRECT, 0)
        else:
            if len(chain) > len(self._free):
                raise IndexError("too few free descriptors")
            heads = [self._take() for _ in chain]
            for i, buffer in enumerate(chain):
                more = i + 1 < len(chain)
                following = heads[i + 1] if more else 0
                flag = VIRTQ_DESC_F_NEXT if more else 0
                _write(self.ram, self.desc, heads[i], buffer, flag, following)
        self._chains[heads[0]] = heads
        self._answers.pop(heads[0], None)
        self.outstanding[heads[0]] = [b for b in chain if b.writable]
        self.offer(heads[0])
        return heads[0]

    def publish(self) -> bool:
        """Write avail.idx. True: the device wants a notification (§2.7.13.3, §2.7.13.4)."""
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

    # -- collecting --------------------------------------------------------

    def collect(self) -> list[tuple[int, int]]:
        """What the device used since last time, as (head, bytes written), in used-ring order.

        AssertionError if the device gave back what it was not given. Their
        descriptors are free again.
        """
        done = []
        index = self._get(self.used + 2)
        while self._collected != index:
            slot = self.used + 4 + 8 * (self._collected % self.size)
            head = int.from_bytes(self.ram.read(slot, 4), "little")
            length = int.from_bytes(self.ram.read(slot + 4, 4), "little")
            assert head in self.outstanding, f"the device used {head}, which is not in flight"
            self._answers[head] = self.outstanding.pop(head)
            self._free += reversed(self._chains.pop(head))
            self._collected = (self._collected + 1) & 0xFFFF
            done.append((head, length))
        return done

    def response(self, head: int) -> bytes:
        """The bytes of all device-writable buffers of a collected chain, in chain order."""
        return b"".join(self.ram.read(b.address, b.length) for b in self._answers[head])

    def enable_interrupts(self, after: int = 0) -> bool:
        """Ask for an interrupt once ``after`` + 1 more buffers are used (0 without EVENT_IDX).

        True: something is there to collect already, so no interrupt may come.
        """
        if self._event_idx:
            self._set(self.avail + 4 + 2 * self.size, (self._collected + after) & 0xFFFF)
        else:
            self._set(self.avail, 0)
        self._fence()
        return self._get(self.used + 2) != self._collected

    def disable_interrupts(self) -> None:
        """Ask for none. A hint, as for the device's side."""
        if not self._event_idx:
            self._set(self.avail, VIRTQ_AVAIL_F_NO_INTERRUPT)

    # -- by hand, for hostile drivers --------------------------------------

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int
    ) -> None:
        """Fill descriptor ``index`` of the queue's table with anything at all."""
        at = self.desc + VIRTQ_DESC_SIZE * index
        self.ram.write(at, _DESC.pack(address, length, flags, following))

    def offer(self, head: int) -> None:
        """Put ``head`` (any 16-bit number) into the next slot of the available ring."""
        self._set(self.avail + 4 + 2 * (self.avail_index % self.size), head)
        self.avail_index = (self.avail_index + 1) & 0xFFFF

    # -- words -------------------------------------------------------------

    def _take(self) -> int:
        return self._free.pop()

    def _recycle(self) -> None:
        if not self.outstanding:
            self._next = self._heap
            self._answers.clear()

    def _get(self, address: int) -> int:
        return self.ram.u16[self.ram.translate(address, 2) // 2]

    def _set(self, address: int, value: int) -> None:
        self.ram.u16[self.ram.translate(address, 2) // 2] = value


def _align(address: int, align: int) -> int:
    return -(-address // align) * align


def _write(ram: Ram, table: int, index: int, buffer: Buffer, flags: int, following: int) -> None:
    if buffer.writable:
        flags |= VIRTQ_DESC_F_WRITE
    packed = _DESC.pack(buffer.address, buffer.length, flags, following)
    ram.write(table + VIRTQ_DESC_SIZE * index, packed)
