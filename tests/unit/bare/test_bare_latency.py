"""The bare guest's distribution of latencies, and its percentiles."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bare.latency import Latencies, bounds
from pykvm.bare.layout import LATENCY_BUCKETS, LATENCY_FIRST

latencies = st.lists(st.integers(1 << LATENCY_FIRST, (1 << 40) - 1), min_size=1, max_size=200)


def counted(values: list[int]) -> Latencies:
    """What the guest would have left."""
    counts = [0] * LATENCY_BUCKETS
    for value in values:
        counts[next(i for i in range(LATENCY_BUCKETS) if value < bounds(i)[1])] += 1
    return Latencies(counts, sum(values), min(values), max(values))


def test_buckets_touch_and_grow():
    edges = [bounds(i) for i in range(LATENCY_BUCKETS)]
    assert edges[0][0] == 1 << LATENCY_FIRST
    assert edges[-1][1] == 1 << LATENCY_FIRST + 32
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    assert all((end - start) * 16 <= start for start, end in edges)


@given(latencies, st.floats(0.1, 100))
def test_a_percentile_is_near_the_exact_one(values: list[int], percent: float):
    ordered = sorted(values)
    exact = ordered[max(0, -int(-len(values) * percent // 100) - 1)]
    assert counted(values).percentile(percent) == pytest.approx(exact, rel=1 / 16)


@given(latencies)
def test_the_ends_are_exact(values: list[int]):
    assert counted(values).percentile(100) == max(values)
    assert min(values) <= counted(values).percentile(0.001)


@given(latencies, latencies)
def test_two_loops_add_up_to_one(ours: list[int], theirs: list[int]):
    assert counted(ours) + counted(theirs) == counted(ours + theirs)


def test_no_request_has_no_latency():
    assert Latencies([0] * LATENCY_BUCKETS, 0, 2**64 - 1, 0).percentile(50) == 0
