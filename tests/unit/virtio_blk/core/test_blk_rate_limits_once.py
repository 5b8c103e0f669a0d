"""A request is charged once, regardless of its execution.

The model is a disk that executes each request at once and in full. With the same
limits, requests start at the same times on a disk that moves fewer bytes than
wanted, cuts large requests into pieces, or fails merged ones. The test sets the
clock.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from random import Random
from unittest.mock import patch

from blk_ranges import DISCARD, ZEROES
from blk_requests import FLUSH, IN, OUT, request_of
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.core.scheduler import Schedule
from pykvm.devices.virtio_blk.core.throttle import Throttle
from pykvm.devices.virtio_blk.modes import ErrorAction, MergePolicy
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.hot.words import longs

SECOND = 1_000_000_000
MOST = 64
"""Sectors of a request; no two share any."""

Asked = tuple[int, int, int]
"""Nanoseconds after the one before, kind, and sectors or ranges."""
Engine = Callable[[Operation], tuple[int, int]]
"""(bytes moved, errno)."""


def in_full(operation: Operation) -> tuple[int, int]:
    return operation.length, 0


def whimsical(dice: Random) -> Engine:
    """Mostly moves less than it was asked to, and fails many that were merged."""

    def execute(operation: Operation) -> tuple[int, int]:
        if len(operation.members) > 1 and dice.random() < 0.5:
            return 0, errno.EIO
        return dice.randint(1, operation.length) if operation.length else 0, 0

    return execute


def requests_of(script: Sequence[Asked]) -> list[tuple[int, Request]]:
    """With the time at which each comes."""
    made: list[tuple[int, Request]] = []
    now = 0
    for head, (pause, kind, size) in enumerate(script):
        now += pause
        sector = head * MOST
        if kind == FLUSH:
            request = request_of(head, kind)
        elif kind in (DISCARD, ZEROES):
            request = request_of(head, kind, sector)
            ranges = [((sector + 2 * index) * 512, 512, 1) for index in range(max(1, size // 2))]
            request.ranges = longs(number for extent in ranges for number in extent)
            request.length = 512 * len(ranges)
        else:
            request = request_of(head, kind, sector, *[512] * size)
        made.append((now, request))
    return made


class Disk:
    """Serves requests as they come, and at the times that the rate limits tell it."""

    def __init__(
        self, limits: RateLimits, engine: Engine, policy: MergePolicy, most: Limits
    ) -> None:
        self.now = 0
        self.starts: dict[int, int] = {}
        self.answers: dict[int, int] = {}
        self._engine = engine
        self._schedule = Schedule(Planner(policy, most), lambda request: ErrorAction.REPORT)
        self._schedule.throttle = Throttle(limits, nullcontext())

    def run(self, script: Sequence[Asked]) -> None:
        left = requests_of(script)
        with patch("time.monotonic_ns", lambda: self.now):
            while left or self._schedule.wake_ns:
                wake = self._schedule.wake_ns
                self.now = min(wake or left[0][0], left[0][0] if left else wake)
                coming = []
                while left and left[0][0] <= self.now:
                    coming.append(left.pop(0)[1])
                if coming:
                    self._schedule.add(coming)
                self._serve()

    def _serve(self) -> None:
        while taken := self._schedule.take():
            for operation in taken:
                for request in operation.members:
                    self.starts.setdefault(request.head, self.now)
                operation.moved, operation.error = self._engine(operation)
                for request in self._schedule.finish(operation):
                    self.answers[request.head] = self.now


scripts = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, SECOND // 50, SECOND // 3]),
        st.sampled_from([IN, IN, OUT, OUT, FLUSH, DISCARD, ZEROES]),
        st.integers(1, MOST),
    ),
    max_size=12,
)
limits = st.builds(
    RateLimits,
    iops=st.sampled_from([1, 100]),
    iops_rd=st.sampled_from([0, 7]),
    bps=st.sampled_from([0, 5000, 10**6]),
    bps_wr=st.sampled_from([0, 20_000]),
    iops_size=st.sampled_from([0, 0, 4096]),
)


@given(limits, scripts, st.sampled_from(MergePolicy), st.randoms(use_true_random=False))
def test_start_times_do_not_depend_on_how_requests_are_executed(
    rates: RateLimits, script: list[Asked], policy: MergePolicy, dice: Random
) -> None:
    model = Disk(rates, in_full, policy, Limits())
    disk = Disk(rates, whimsical(dice), policy, Limits(bytes=2048, pieces=3))
    model.run(script)
    disk.run(script)
    assert len(disk.answers) == len(script)
    if policy is MergePolicy.OFF:
        assert disk.starts == model.starts
        assert disk.answers == model.answers, "what has started waits for no tokens"
    assert disk.answers == disk.starts or FLUSH in {kind for _, kind, _ in script}


def test_a_retry_after_a_stop_is_not_charged() -> None:
    actions = [ErrorAction.STOP, ErrorAction.REPORT]
    schedule = Schedule(Planner(MergePolicy.OFF, Limits()), lambda request: actions.pop(0))
    schedule.throttle = Throttle(RateLimits(bps=1), nullcontext())
    schedule.add([request_of(0, OUT, 0, 512), request_of(1, OUT, 1, 512)])
    for _ in range(2):
        (operation,) = schedule.take()
        operation.error = errno.EIO
        answers = schedule.finish(operation)
        if schedule.halted:
            schedule.resume()
    assert [request.head for request in answers] == [0]
    assert schedule.take() == []
    assert schedule.wake_ns > 0, "what never started waits for its tokens"


def test_the_next_request_of_a_head_is_charged() -> None:
    schedule = Schedule(Planner(MergePolicy.OFF, Limits()), lambda request: ErrorAction.REPORT)
    schedule.throttle = Throttle(RateLimits(bps=1), nullcontext())
    request = request_of(0, IN, 0, 512)
    schedule.add([request])
    (operation,) = schedule.take()
    operation.moved = operation.length
    assert schedule.finish(operation) == [request]
    schedule.add([request])
    assert schedule.take() == []
