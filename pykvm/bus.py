"""The I/O bus: finds the device for an address.

One :class:`Bus` serves port I/O, a second one MMIO. Values are unsigned
integers of ``size`` bytes, little-endian as on x86. No access of a guest is an
error: a read that no device claims gives all ones, and a write that no device
claims is dropped, as on real hardware.
"""

from bisect import bisect_right
from threading import Lock

from pykvm.lean.typing_names import Protocol


class BusDevice(Protocol):
    """A device on a bus. Any vCPU thread calls it; it locks itself."""

    def read(self, offset: int, size: int) -> int:
        """Return the ``size`` bytes at ``offset`` into the device's range, as an integer."""

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
        """Claim ``[start, start + size)`` for ``device``; ValueError if a part is taken."""
        if start < 0 or size <= 0:
            raise ValueError(f"bad range: {start:#x}+{size:#x}")
        with self._lock:
            entries = self._table[1]
            for first, end, _ in entries:
                if start < end and first < start + size:
                    raise ValueError(f"{start:#x}+{size:#x} overlaps {first:#x}-{end:#x}")
            self._swap(sorted([*entries, (start, start + size, device)], key=lambda e: e[0]))

    def remove(self, start: int) -> None:
        """Release the range that begins at ``start``; KeyError if there is none."""
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
        # No device claims an access that runs past the end of its range.
        return (device, address - start) if address + size <= end else None

    def read(self, address: int, size: int) -> int:
        """The value of a read of ``size`` bytes at ``address``; all ones if unclaimed."""
        found = self._find(address, size)
        mask = (1 << (8 * size)) - 1
        return found[0].read(found[1], size) & mask if found else mask

    def write(self, address: int, size: int, value: int) -> None:
        """Pass on a write of ``size`` bytes at ``address``; drop it if unclaimed."""
        found = self._find(address, size)
        if found:
            found[0].write(found[1], size, value)
