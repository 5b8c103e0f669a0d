"""The common part of test drivers for both ring formats: memory and chains.

:mod:`pykvm.testing.split_driver` has an example.
"""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

from pykvm.memory.ram import Ram
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_DESC_ALIGN,
    VIRTQ_DESC_SIZE,
)
from pykvm.virtio.queue import Virtqueue, no_fence

_DESC = Struct("<QIHH")


class Buffer(NamedTuple):
    """One element of a chain: guest-physical address, bytes, and True if the device writes it."""

    address: int
    length: int
    writable: bool


class RingDriver:
    """Owns one queue's rings and a heap in ``ram``, as a driver would.

    ``desc``, ``avail`` and ``used`` are the guest-physical addresses for the
    transport: the descriptor, driver and device areas (§2.6). ``end`` is the
    first address behind this driver's memory. ``outstanding`` maps each head in
    flight to its device-writable buffers. The format defines a head.
    """

    def __init__(
        self,
        ram: Ram,
        size: int,
        features: int,
        base: int,
        heap: int,
        fence: Callable[[], None],
        areas: tuple[int, int],
    ) -> None:
        """``areas`` are the bytes of the driver and the device area; the rest: see SplitDriver."""
        self.ram = ram
        self.size = size
        self.features = features
        self.desc = base
        self.avail = base + VIRTQ_DESC_SIZE * size
        self.used = _align(self.avail + areas[0], 4)
        self._heap = _align(self.used + areas[1], 64)
        region = next((r for r in ram.regions if r.start <= base < r.end), None)
        if region is None or base % VIRTQ_DESC_ALIGN or self._heap + heap > region.end:
            raise ValueError(f"no room for {size} descriptors and {heap} bytes at {base:#x}")
        self.end = self._heap + heap if heap else region.end
        self._next = self._heap
        self._fence = fence
        self._event_idx = bool(features & VIRTIO_F_EVENT_IDX)
        self._answers: dict[int, list[Buffer]] = {}
        self.outstanding: dict[int, list[Buffer]] = {}
        ram.write(base, bytes(self._heap - base))

    # -- memory ------------------------------------------------------------

    def alloc(self, length: int, align: int = 16) -> int:
        """The guest-physical address of ``length`` free bytes; MemoryError if the heap is full.

        The heap empties itself when :meth:`send` is called while no chain is in
        flight, so a response is readable until then.
        """
        address = _align(self._next, align)
        if address + length > self.end:
            raise MemoryError(f"the test driver's heap has no {length} bytes left")
        self._next = address + length
        return address

    @property
    def room(self) -> int:
        """The number of free bytes in the heap."""
        return self.end - self._next

    def empty_heap(self) -> None:
        """Free the whole heap. No chain may be in flight."""
        assert not self.outstanding, "the device may still use the heap"
        self._next = self._heap
        self._answers.clear()

    def put(self, data: bytes) -> int:
        """The guest-physical address of a copy of ``data``."""
        address = self.alloc(len(data))
        self.ram.write(address, data)
        return address

    # -- chains ------------------------------------------------------------

    def send(
        self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool | None = None
    ) -> int:
        """Add a chain of new buffers, one descriptor each; return its head. See :meth:`add`.

        ``readable`` has the data for the device to read, ``writable`` the lengths
        of the buffers for it to write. These are filled with 0xAA, so that
        unwritten bytes show.
        """
        if not self.outstanding:
            self.empty_heap()
        chain = [Buffer(self.put(data), len(data), False) for data in readable]
        chain += [Buffer(self.put(b"\xaa" * length), length, True) for length in writable]
        return self.add(chain, indirect=indirect)

    def add(self, chain: Sequence[Buffer], *, indirect: bool | None = None) -> int:
        """Make ``chain`` available, but do not publish it; return its head.

        ``indirect`` None uses a table if the feature was negotiated and the
        chain has more than one element, as Linux does. IndexError if too few
        descriptors are free. The chain is not checked.
        """
        if indirect is None:
            indirect = bool(self.features & VIRTIO_F_INDIRECT_DESC) and len(chain) > 1
        head = self._add(chain, indirect)
        self._answers.pop(head, None)
        self.outstanding[head] = [b for b in chain if b.writable]
        return head

    def collect(self) -> list[tuple[int, int]]:
        """The heads used since the last call, as (head, bytes written), in the ring's order.

        Frees their descriptors. AssertionError if the device gave back a head that
        was not in flight.
        """
        done = []
        while used := self._next_used():
            head, length = used
            assert head in self.outstanding, f"the device used {head}, which is not in flight"
            self._answers[head] = self.outstanding.pop(head)
            self._take_back(head)
            done.append((head, length))
        return done

    def response(self, head: int) -> bytes:
        """The bytes of all device-writable buffers of a collected chain, in chain order."""
        return b"".join(self.ram.read(b.address, b.length) for b in self._answers[head])

    # -- for the formats ---------------------------------------------------

    def device_queue(self, index: int = 0, fence: Callable[[], None] = no_fence) -> Virtqueue:
        """The device's side of these rings, at the place where this side began."""
        raise NotImplementedError

    def publish(self) -> bool:
        """Show the device the added chains. True: it wants a notification (§2.7.13, §2.8.21)."""
        raise NotImplementedError

    def enable_interrupts(self, after: int = 0) -> bool:
        """Ask for an interrupt once ``after`` + 1 more buffers are used (0 without EVENT_IDX).

        True: there are used heads to collect already, so there may be no interrupt.
        """
        raise NotImplementedError

    def disable_interrupts(self) -> None:
        """Ask for no interrupts. This is a hint, as on the device's side."""
        raise NotImplementedError

    def _add(self, chain: Sequence[Buffer], indirect: bool) -> int:
        raise NotImplementedError

    def _next_used(self) -> tuple[int, int] | None:
        """(head, bytes written) of the next used element, if there is one; unchecked."""
        raise NotImplementedError

    def _take_back(self, head: int) -> None:
        """Free the descriptors of ``head``, which had the next used element."""
        raise NotImplementedError

    # -- by hand, for hostile drivers --------------------------------------

    def spoil(self) -> None:
        """Make something invalid available, once published."""
        raise NotImplementedError

    def write_descriptor(
        self, index: int, address: int, length: int, third: int, fourth: int
    ) -> None:
        """Fill descriptor ``index`` of the queue with any values.

        ``third`` and ``fourth`` are its last two 16-bit numbers: flags and
        next in a split queue, id and flags in a packed one.
        """
        at = self.desc + VIRTQ_DESC_SIZE * index
        self.ram.write(at, _DESC.pack(address, length, third, fourth))

    # -- words -------------------------------------------------------------

    def _put_table(self, descriptors: Sequence[tuple[int, int, int, int]]) -> tuple[int, int]:
        """(address, bytes) of a new indirect table of ``descriptors``."""
        table = b"".join(_DESC.pack(*fields) for fields in descriptors)
        return self.put(table), len(table)

    def _get(self, address: int) -> int:
        return self.ram.u16[self.ram.translate(address, 2) // 2]

    def _set(self, address: int, value: int) -> None:
        self.ram.u16[self.ram.translate(address, 2) // 2] = value


def _align(address: int, align: int) -> int:
    return -(-address // align) * align
