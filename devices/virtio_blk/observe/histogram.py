"""How long requests took: how many within which bounds. Pure.

Buckets grow with the time, so that each estimate is as good as any other: 8 of
one width between 2^n and 2^(n+1) ns, for n from 10 to 35. Below is one (a
microsecond), and above (a minute) another.
"""

from itertools import pairwise
from typing import Final

from pykvm.hot.words import Longs, longs

PARTS: Final = 8
"""Buckets from one power of 2 to the next."""
POWERS: Final = tuple(1 << bits for bits in range(10, 37))
LAST: Final = 1 + PARTS * (len(POWERS) - 1)
"""The last bucket."""


class Histogram:
    """Nanoseconds, in ``counts`` by bucket."""

    counts: Longs

    def __init__(self) -> None:
        self.counts = longs([0] * (LAST + 1))

    def add(self, ns: int) -> None:
        """Count a time, which is not negative."""
        # Numbers, not names: those of a module are slow to look up when compiled. So is
        # bit_length(), hence the halving.
        if ns >> 36:
            bucket = 209
        elif ns >> 10:
            rest = ns >> 10
            power = 0
            if rest >> 16:
                rest >>= 16
                power = 16
            if rest >> 8:
                rest >>= 8
                power += 8
            if rest >> 4:
                rest >>= 4
                power += 4
            if rest >> 2:
                rest >>= 2
                power += 2
            if rest >> 1:
                power += 1
            bucket = 1 + 8 * power + (ns >> (power + 7) & 7)
        else:
            bucket = 0
        self.counts[bucket] += 1

    def add_all(self, other: "Histogram") -> None:
        """Count what ``other`` has counted too."""
        for bucket in range(len(self.counts)):
            self.counts[bucket] += other.counts[bucket]

    @property
    def total(self) -> int:
        """How many times were counted. Another thread may be counting meanwhile."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """About the time, in ns, that ``percent`` of 100 do not exceed; 0 if there are none.

        At most an eighth off, but for times below 1 µs; and 2^36 for longer ones.
        """
        counts = list(self.counts)
        wanted = sum(counts) * percent / 100
        reached = 0
        for (start, end), count in zip(pairwise((0, *bounds())), counts, strict=False):
            if count and reached + count >= wanted:
                return start + (end - start) * max(0.0, wanted - reached) / count
            reached += count
        return float(bounds()[-1]) if reached < sum(counts) else 0.0

    def as_dict(self) -> dict[str, list[int]]:
        """QEMU's BlockLatencyHistogramInfo: n ``boundaries`` in ns and the n + 1 ``bins`` between.

        A bin holds what is not less than the boundary before it, and less than the one after;
        the boundaries are the powers of 2.
        """
        counts = list(self.counts)
        inner = [sum(counts[i : i + PARTS]) for i in range(1, LAST, PARTS)]
        return {"boundaries": list(POWERS), "bins": [counts[0], *inner, counts[LAST]]}


def bounds() -> list[int]:
    """Where each bucket ends and the next begins, in ns."""
    inner = [low + low * part // PARTS for low in POWERS[:-1] for part in range(PARTS)]
    return [*inner, POWERS[-1]]
