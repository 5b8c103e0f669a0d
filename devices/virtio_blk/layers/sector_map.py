"""A set of sectors: few sectors of a disk of any size. Pure."""

from collections.abc import Iterator
from typing import Final

CHUNK: Final = 4096
"""Sectors in one word of bits: at most half a KiB of memory for 2 MiB of the disk."""

_FULL: Final = (1 << CHUNK) - 1


class SectorMap:
    """The sectors that were added, and every sector from ``end`` on.

    Memory grows with the number of chunks that have sectors, up to 1/3000 of the
    disk's size. One thread at a time adds; any thread may call :meth:`run` meanwhile.
    """

    def __init__(self, end: int) -> None:
        self.end = end
        self._chunks: dict[int, int] = {}

    def add(self, first: int, end: int) -> None:
        """Add the sectors from ``first`` up to, not including, ``end``."""
        chunks = self._chunks
        while first < end:
            index, bit = divmod(first, CHUNK)
            count = min(end - first, CHUNK - bit)
            bits = _FULL if count == CHUNK else chunks.get(index, 0) | ((1 << count) - 1) << bit
            chunks[index] = bits
            first += count

    def cut(self, end: int) -> None:
        """Remove the sectors that were added from ``end`` on, and continue as if all were there."""
        self.end = min(self.end, end)
        last, bit = divmod(end, CHUNK)
        for index in [index for index in self._chunks if index >= last]:
            bits = self._chunks.pop(index)
            if index == last:
                self._chunks[index] = bits & ((1 << bit) - 1)

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, number) of the sectors that were added, in ascending order."""
        for index, bits in self.chunks():
            left, at = bits, index * CHUNK
            while left:
                skip = (left & -left).bit_length() - 1
                at, left = at + skip, left >> skip
                count = (~left & left + 1).bit_length() - 1
                yield at, count
                at, left = at + count, left >> count

    def chunks(self) -> list[tuple[int, int]]:
        """(index, bits) of each chunk with sectors that were added, in ascending order."""
        return sorted([one for one in self._chunks.items() if one[1]])

    def set_chunk(self, index: int, bits: int) -> None:
        """Give chunk ``index`` exactly the sectors ``bits``."""
        self._chunks[index] = bits

    def run(self, first: int, end: int) -> tuple[bool, int]:
        """Whether ``first`` is in the set, and the sectors until the next change or ``end``."""
        until = min(end, self.end)
        if first >= until:
            return True, end - first
        index, bit = divmod(first, CHUNK)
        inside = bool(self._chunks.get(index, 0) >> bit & 1)
        flip = _FULL if inside else 0
        at = first
        while at < until:
            index, bit = divmod(at, CHUNK)
            others = (self._chunks.get(index, 0) ^ flip) >> bit
            if others:
                at += (others & -others).bit_length() - 1
                break
            at += CHUNK - bit
        if at >= until:
            at = end if inside or end == until else until
        return inside, at - first
