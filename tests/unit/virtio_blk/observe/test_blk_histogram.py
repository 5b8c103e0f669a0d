"""Latencies are in the right buckets, and percentiles are nearly exact."""

from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.observe.histogram import LAST, POWERS, Histogram, bounds
from pykvm.devices.virtio_blk.observe.stats import Stats

TIMES = st.integers(0, 60).flatmap(lambda bits: st.integers(0, 1 << bits))


def histogram(*times: int) -> Histogram:
    made = Histogram()
    for ns in times:
        made.add(ns)
    return made


def test_bounds_grow_and_there_is_one_bucket_more() -> None:
    assert len(bounds()) == LAST
    assert all(one < next_ for one, next_ in pairwise(bounds()))


@given(TIMES)
def test_each_time_is_in_its_bucket(ns: int) -> None:
    (bucket,) = [i for i, count in enumerate(histogram(ns).counts) if count]
    assert bucket == bisect_right(bounds(), ns)


@pytest.mark.parametrize("bound", bounds())
def test_a_bound_belongs_to_the_bucket_that_begins_there(bound: int) -> None:
    buckets = [list(histogram(ns).counts).index(1) for ns in (bound - 1, bound)]
    assert buckets[1] - buckets[0] == 1


@given(st.lists(TIMES))
def test_bins_as_qemu_has_them(times: list[int]) -> None:
    info = histogram(*times).as_dict()
    assert info["boundaries"] == list(POWERS)
    wanted = [0] * (len(POWERS) + 1)
    for ns in times:
        wanted[bisect_right(POWERS, ns)] += 1
    assert info["bins"] == wanted


@given(
    st.lists(st.integers(POWERS[0], POWERS[-1] - 1), min_size=1),
    st.integers(1, 100),
)
def test_percentiles_are_at_most_an_eighth_off(times: list[int], percent: int) -> None:
    exact = sorted(times)[max(0, -(-len(times) * percent // 100) - 1)]
    estimate = histogram(*times).percentile(percent)
    assert exact * 7 / 8 <= estimate <= exact * 9 / 8 + 1


def test_percentiles_at_the_ends() -> None:
    assert histogram().percentile(50) == 0
    assert histogram(1 << 50).percentile(50) == 1 << 36
    assert histogram(100).percentile(100) <= 1024


def test_each_operation_has_its_own_histogram() -> None:
    stats = Stats()
    for kind, times in ((VIRTIO_BLK_T_IN, 3), (VIRTIO_BLK_T_OUT, 2), (VIRTIO_BLK_T_FLUSH, 1)):
        for _ in range(times):
            stats.done(kind, 512, 5000, 0)
        stats.failed(kind)
        stats.invalid(kind)
    stats = Stats.total([stats, Stats()])
    totals = [stats.histogram(name).total for name in ("read", "write", "flush")]
    assert totals == [3, 2, 1]
    for name, total in (("rd", 3), ("wr", 2), ("flush", 1)):
        assert sum(stats.histograms()[f"{name}_latency_histogram"]["bins"]) == total


def test_queues_add_up() -> None:
    queues = [Stats(), Stats()]
    for queue, took in zip(queues, (2_000, 4_000_000), strict=True):
        queue.done(VIRTIO_BLK_T_IN, 512, took, 0)
    whole = Stats.total(queues).histogram("read")
    assert list(whole.counts) == list(histogram(2_000, 4_000_000).counts)
