"""Rate limits, without a clock: when operations of one queue or several start.

The model is the definition. In any span of time, at most rate times time, a
burst, and the rest of one request start. An operation waits only while one of
its buckets has no tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
from blk_operations import flush, operation
from blk_requests import request_of
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.throttle import GRACE_NS, Throttle
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.errors import UsageError

IN, OUT = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
SECOND = 1_000_000_000


def throttle(**limits: int) -> Throttle:
    return Throttle(RateLimits(**limits), nullcontext())


def merged(kind: int, lengths: Sequence[int]) -> Operation:
    """An operation for a request of each of ``lengths``."""
    made = operation(kind, 0, [(0, length) for length in lengths])
    made.members = [request_of(0, kind, 0, length) for length in lengths]
    return made


def single(kind: int, length: int = 512) -> Operation:
    return merged(kind, [length])


def reads(count: int, length: int = 512) -> list[Operation]:
    return [single(IN, length) for _ in range(count)]


def writes(count: int, length: int = 512) -> list[Operation]:
    return [single(OUT, length) for _ in range(count)]


def run(
    limiter: Throttle, operations: list[Operation], start: int, until: int, queue: int = 0
) -> list[tuple[int, Operation]]:
    """When each of ``operations``, all there at ``start``, starts; asking when told to."""
    started = []
    now = start
    while operations and now <= until:
        admission = limiter.admit(queue, operations, now)
        started += [(now, one) for one in admission.started]
        operations = admission.delayed
        assert bool(operations) == (admission.wake_ns > 0)
        assert not operations or admission.wake_ns > now, "no busy waiting"
        now = admission.wake_ns
    return started


def test_a_burst_and_then_the_rate() -> None:
    """A tenth of a second's worth at once, then one every hundredth."""
    started = run(throttle(iops=100), reads(20), SECOND, 2 * SECOND)
    times = [when - SECOND for when, _ in started]
    assert times[:10] == [0] * 10
    assert times[10:] == [1 + n * SECOND // 100 for n in range(10)]


def test_a_burst_that_the_user_chose() -> None:
    started = run(throttle(iops=100, iops_max=3), reads(5), 0, SECOND)
    assert [when for when, _ in started] == [0, 0, 0, 1, SECOND // 100 + 1]


def test_unused_tokens_are_kept_up_to_the_burst() -> None:
    limiter = throttle(iops=10, iops_max=2)
    for start in (0, 10 * SECOND):
        admission = limiter.admit(0, reads(5), start)
        assert len(admission.started) == 2
        assert admission.wake_ns == start + 1


def test_a_large_operation_is_paid_for_afterwards() -> None:
    limiter = throttle(bps=1000)
    first, second = limiter.admit(0, reads(2, 4096), 0)[:2]
    assert (len(first), len(second)) == (1, 1)
    # 100 were there, and 3996 are owed.
    assert limiter.admit(0, second, 0).wake_ns == 3_996_000_001


def test_each_direction_has_its_own_limit() -> None:
    limiter = throttle(iops_rd=1, bps_wr=512)
    asked = [*reads(2), *writes(2), *reads(1), *writes(1)]
    admission = limiter.admit(0, asked, 0)
    assert admission.started == [asked[0], asked[2]]
    assert admission.delayed == [asked[1], *asked[3:]]


def test_a_small_operation_does_not_overtake_a_large_one_that_waits() -> None:
    """The write would find tokens for itself again and again, and the read never."""
    limiter = throttle(iops=1000, bps_rd=1)
    limiter.admit(0, reads(1, 1 << 20), 0)
    # Waits for the limit of reads, which writes do not have.
    assert limiter.admit(0, [*reads(1), *writes(1)], 1).started[0].kind == OUT
    limiter = throttle(bps=1000, bps_max=1)
    limiter.admit(0, reads(1, 500), 0)
    asked = [*reads(1, 500), *writes(1, 1)]
    started = run(limiter, asked, 1, 2 * SECOND)
    assert [one.kind for _, one in started] == [IN, OUT]


@pytest.mark.parametrize("first", [IN, OUT])
def test_the_wake_time_is_that_of_the_first_operation_to_start(first: int) -> None:
    """A write that owes a minute comes before a read that may start in 10 ms, or after it."""
    limiter = throttle(iops=100, iops_max=1, bps_wr=1000)
    limiter.admit(0, writes(1, 60_000), 0)
    asked = [*writes(1), *reads(1)]
    if first == IN:
        asked.reverse()
    admission = limiter.admit(0, asked, 0)
    assert admission.started == []
    assert admission.wake_ns == 1
    admission = limiter.admit(0, asked, 1)
    assert [one.kind for one in admission.started] == [IN]
    assert admission.wake_ns == 59_900_000_001


def test_flushes_are_free_and_operations_without_data_cost_no_bytes() -> None:
    limiter = throttle(iops=1, bps=1)
    limiter.admit(0, reads(1), 0)
    flushes = [flush() for _ in range(3)]
    assert limiter.admit(0, flushes, 0) == (flushes, [], 0)
    limiter = throttle(iops=2, iops_max=2, iops_size=512, bps=1)
    discards = [single(VIRTIO_BLK_T_DISCARD, 1 << 40) for _ in range(3)]
    assert limiter.admit(0, discards, 0) == (discards[:2], discards[2:], 1)


@pytest.mark.parametrize(
    ("size", "asked", "cost"),
    [
        (0, merged(OUT, [512, 512, 4096]), 3),
        (0, single(IN, 1 << 20), 1),
        (4096, merged(OUT, [512, 4096, 4608]), 4),
        (4096, single(IN, 1 << 20), 256),
    ],
)
def test_a_large_operation_counts_as_several_requests(
    size: int, asked: Operation, cost: int
) -> None:
    limiter = throttle(iops=1000, iops_max=1, iops_size=size)
    limiter.admit(0, [asked], 0)
    wake = limiter.admit(0, reads(1), 0).wake_ns
    assert wake == (cost - 1) * SECOND // 1000 + 1


def test_queues_take_turns() -> None:
    """Both wake at the same moment, and it is always the same one that comes first."""
    limiter = throttle(iops=10)
    starts: list[int] = []
    now = 0
    asked = {queue: reads(100) for queue in (1, 2, 3)}
    while len(starts) < 60:
        wakes = []
        for queue, waiting in asked.items():
            admission = limiter.admit(queue, waiting, now)
            starts += [queue] * len(admission.started)
            asked[queue] = admission.delayed
            wakes.append(admission.wake_ns)
        now = min(wakes)
    assert {starts.count(queue) for queue in asked} <= {19, 20, 21}


def test_a_queue_that_never_comes_back_delays_the_others_only_briefly() -> None:
    limiter = throttle(iops=10)
    limiter.admit(1, reads(2), 0)  # and is reset
    started = run(limiter, reads(5), 0, SECOND, queue=2)
    assert len(started) == 5
    assert [when for when, _ in started][:2] == [1 + GRACE_NS, SECOND // 10 + 1]


# -- any limits, any load --------------------------------------------------------

rate = st.sampled_from([0, 1, 7, 100, 12345, 10**6])
loads = st.lists(
    st.tuples(
        st.integers(0, SECOND // 2),  # after the one before
        st.sampled_from([IN, OUT, VIRTIO_BLK_T_FLUSH]),
        st.integers(1, 5000),
    ),
    max_size=30,
)


@given(
    iops=rate, iops_rd=rate, bps=rate, bps_wr=rate, burst=st.sampled_from([0, 1, 300]), load=loads
)
def test_never_more_than_allowed_and_never_idle(
    iops: int,
    iops_rd: int,
    bps: int,
    bps_wr: int,
    burst: int,
    load: list[tuple[int, int, int]],
) -> None:
    limits = {"iops": iops, "iops_rd": iops_rd, "bps": bps, "bps_wr": bps_wr}
    limiter = throttle(**limits, iops_max=burst if iops else 0, bps_max=burst if bps else 0)
    meters = [
        (name, value, (burst if name in ("iops", "bps") else 0) or max(1, value // 10))
        for name, value in limits.items()
        if value
    ]

    def cost(name: str, one: Operation) -> int:
        if one.kind == VIRTIO_BLK_T_FLUSH:
            return 0
        if (name, one.kind) in (("iops_rd", OUT), ("bps_wr", IN)):
            return 0
        return 1 if name.startswith("iops") else one.length

    history: list[tuple[int, Operation]] = []

    def level(name: str, value: int, most: int, now: int) -> int:
        """The level of the bucket, by definition, in 10^-9 tokens."""
        tokens, at = most * SECOND, 0
        for when, one in history:
            tokens = min(most * SECOND, tokens + value * (when - at)) - cost(name, one) * SECOND
            at = when
        return min(most * SECOND, tokens + value * (now - at))

    waiting: list[Operation] = []
    now = wake = 0
    arrivals = list(load)
    at = 0
    while arrivals or waiting:
        if arrivals and (not waiting or at + arrivals[0][0] <= wake):
            pause, kind, length = arrivals.pop(0)
            at += pause
            now = max(now, at)
            waiting.append(single(kind, length))
        else:
            now = wake
        started, waiting, wake = limiter.admit(0, waiting, now)
        for one in started:
            lacking = [m for m in meters if cost(m[0], one) and level(*m, now) <= 0]
            assert not lacking, "only who finds tokens starts"
            history.append((now, one))
        heads = {one.kind: one for one in reversed(waiting)}.values()

        def free(one: Operation, then: int) -> bool:
            return all(level(*m, then) > 0 for m in meters if cost(m[0], one))

        assert not any(free(one, now) for one in heads), "nothing waits while there are tokens"
        if waiting:
            assert not any(free(one, wake - 1) for one in heads), "none could have started before"
            assert any(free(one, wake) for one in heads), "the first that may start is woken for"
        assert not waiting or wake > now
    for name, value, most in meters:
        for first in range(len(history)):
            total = 0
            for when, one in history[first:]:
                allowed = value * (when - history[first][0]) + most * SECOND
                assert not cost(name, one) or total * SECOND < allowed
                total += cost(name, one)


# -- the values of limits -------------------------------------------------------


def test_limits_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="iops-rd cannot be -1; use 0 to 1000000000000000"):
        RateLimits(iops_rd=-1)
    with pytest.raises(UsageError, match="bps-max has no effect without bps; give bps too"):
        RateLimits(bps_max=1, bps_rd=1)
    with pytest.raises(UsageError, match="iops-size has no effect without iops; give iops too"):
        RateLimits(iops_size=4096, bps=1)
    assert not RateLimits()
    assert RateLimits(bps_wr=1)
