"""A histogram of the times that requests took. Pure.

The width of a bucket grows with the time, so the relative error of an estimate
is the same everywhere: there are 8 buckets of one width between 2^n and 2^(n+1)
ns, for n from 10 to 35. One bucket holds the shorter times (below a
microsecond), and one the longer times (above a minute).
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
    """Times in nanoseconds: ``counts`` has their number in each bucket."""

    counts: Longs

    def __init__(self) -> None:
        self.counts = longs([0] * (LAST + 1))

    def add(self, ns: int) -> None:
        """Count a time, which is not negative."""
        # Numbers, not names: the compiled form is slow to look up a name of the module. It is slow
        # to call bit_length(), too, hence the halving.
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
        """Add the counts of ``other``."""
        for bucket in range(len(self.counts)):
            self.counts[bucket] += other.counts[bucket]

    @property
    def total(self) -> int:
        """The number of times counted. Another thread may count meanwhile."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """The time, in ns, that ``percent`` per cent do not exceed, estimated; 0 without times.

        The error is at most an eighth, except below 1 µs. Times above 2^36 ns count as 2^36.
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

        A time counts in the bin between the last boundary that it reaches and the next one. The
        boundaries are powers of 2.
        """
        counts = list(self.counts)
        inner = [sum(counts[i : i + PARTS]) for i in range(1, LAST, PARTS)]
        return {"boundaries": list(POWERS), "bins": [counts[0], *inner, counts[LAST]]}


def bounds() -> list[int]:
    """The boundaries between the buckets, in ns."""
    inner = [low + low * part // PARTS for low in POWERS[:-1] for part in range(PARTS)]
    return [*inner, POWERS[-1]]
