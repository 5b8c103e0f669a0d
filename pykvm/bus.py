"""The I/O bus: which device answers at which address.

One :class:`Bus` serves port I/O and another MMIO. Values are unsigned
integers of ``size`` bytes, little-endian as x86 has them. Nothing a guest
does here is an error: a read that nobody claims gives all ones and such a
write is dropped, as on real hardware.
"""

from bisect import bisect_right
from threading import Lock

from pykvm.lean.typing_names import Protocol


class BusDevice(Protocol):
    """What answers on a bus. Called from any vCPU thread; locks itself."""

    def read(self, offset: int, size: int) -> int:
        """The ``size`` bytes at ``offset`` into the device's range, as an integer."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Store ``value`` (``size`` bytes) at ``offset`` into the device's range."""


class Bus:
    """An address space of non-overlapping device ranges.

    Look-ups take no lock: each change builds a new table and swaps it in.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._table: tuple[list[int], list[tuple[int, int, BusDevice]]] = ([], [])

    def add(self, start: int, size: int, device: BusDevice) -> None:
        """Claim ``[start, start + size)``; ValueError if any of it is taken."""
        if start < 0 or size <= 0:
            raise ValueError(f"bad range: {start:#x}+{size:#x}")
        with self._lock:
            entries = self._table[1]
            for first, end, _ in entries:
                if start < end and first < start + size:
                    raise ValueError(f"{start:#x}+{size:#x} overlaps {first:#x}-{end:#x}")
            self._swap(sorted([*entries, (start, start + size, device)], key=lambda e: e[0]))

    def remove(self, start: int) -> None:
        """Give up the range that begins at ``start``; KeyError if there is none."""
        with self._lock:
            kept = [entry for entry in self._table[1] if entry[0] != start]
            if len(kept) == len(self._table[1]):
                raise KeyError(start)
            self._swap(kept)

    def _swap(self, entries: list[tuple[int, int, BusDevice]]) -> None:
        self._table = ([entry[0] for entry in entries], entries)

    def _find(self, address: int, size: int) -> tuple[BusDevice, int] | None:
        starts, entries = self._table
        index = bisect_right(starts, address) - 1
        if index < 0:
            return None
        start, end, device = entries[index]
        # An access that runs past the end of the range belongs to nobody.
        return (device, address - start) if address + size <= end else None

    def read(self, address: int, size: int) -> int:
        """What the guest reads at ``address``: ``size`` bytes, all ones if unclaimed."""
        found = self._find(address, size)
        mask = (1 << (8 * size)) - 1
        return found[0].read(found[1], size) & mask if found else mask

    def write(self, address: int, size: int, value: int) -> None:
        """The guest's write of ``size`` bytes; dropped if unclaimed."""
        found = self._find(address, size)
        if found:
            found[0].write(found[1], size, value)
