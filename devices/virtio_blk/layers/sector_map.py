"""A set of sectors, for disks of any size of which little is in it. Pure."""

from typing import Final

CHUNK: Final = 4096
"""Sectors in one word of bits: 2 MiB of the disk for at most half a KiB of memory."""

_FULL: Final = (1 << CHUNK) - 1


class SectorMap:
    """Sectors that were added, and every sector from ``end`` on. Empty at first, but for these.

    Memory grows with the places that were added to, to at most 1/3000 of the
    disk's size. One thread at a time adds; any may look meanwhile.
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

    def run(self, first: int, end: int) -> tuple[bool, int]:
        """Is ``first`` in it, and how many sectors from there on, before ``end``, are as it is?"""
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
