"""Latencies, as guest/bare/script.h counts them by size. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pykvm.bare.layout import LATENCIES, LATENCY_FIRST, LATENCY_STEPS


@dataclass(frozen=True, slots=True)
class Latencies:
    """The distribution of the latencies of requests or exits, in TSC ticks.

    ``counts`` are the guest's buckets. ``sum``, ``least`` and ``most`` are exact.
    """

    counts: Sequence[int]
    sum: int
    least: int
    most: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From ``struct latencies``."""
        total, least, most, *counts = LATENCIES.unpack(data)
        return cls(counts, total, least, most)

    @property
    def total(self) -> int:
        """The number of latencies."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """The latency that ``percent`` of all did not exceed; 0 if there are none.

        A bucket is a sixteenth of its power of 2 wide. Latencies count as evenly spread in a
        bucket, so the error is at most 6 %.
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
        """The distribution of the latencies of both."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Latencies(
            counts,
            self.sum + other.sum,
            min(self.least, other.least),
            max(self.most, other.most),
        )


def bounds(bucket: int) -> tuple[int, int]:
    """The first latency that counts in ``bucket``, and the first that counts in the next."""
    octave, step = divmod(bucket, LATENCY_STEPS)
    width = (1 << octave + LATENCY_FIRST) // LATENCY_STEPS
    start = (LATENCY_STEPS + step) * width
    return start, start + width
