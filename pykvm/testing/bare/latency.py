"""The latencies of a closed loop, as guest/bare/script.h counts them by size. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pykvm.testing.bare.layout import LATENCY_FIRST, LATENCY_STEPS


@dataclass(frozen=True, slots=True)
class Latencies:
    """How many requests took how long, in ticks.

    ``counts`` are the guest's buckets, ``least`` and ``most`` the exact ends.
    """

    counts: Sequence[int]
    least: int
    most: int

    @property
    def total(self) -> int:
        """Requests counted."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """The latency that ``percent`` of the requests did not exceed; 0 if there were none.

        Within a bucket (a sixteenth of its power of 2) requests count as
        evenly spread, so the answer is off by 6 % at the very most.
        """
        wanted = self.total * percent / 100
        before = 0
        for bucket, count in enumerate(self.counts):
            if count and before + count >= wanted:
                start, end = bounds(bucket)
                at = start + (end - start) * (wanted - before) / count
                return min(max(at, self.least), self.most)
            before += count
        return 0.0

    def __add__(self, other: Self) -> "Latencies":
        """Both together."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Latencies(counts, min(self.least, other.least), max(self.most, other.most))


def bounds(bucket: int) -> tuple[int, int]:
    """The first latency that counts in ``bucket``, and the first that counts in the next."""
    octave, step = divmod(bucket, LATENCY_STEPS)
    width = (1 << octave + LATENCY_FIRST) // LATENCY_STEPS
    start = (LATENCY_STEPS + step) * width
    return start, start + width
