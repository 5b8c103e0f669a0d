"""Examples of plans: which requests share an operation, and which need several."""

from itertools import chain

import pytest
from blk_requests import FLUSH, IN, OUT, heads, planned, request_of, requests_of

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.modes import MergePolicy

SEQUENTIAL, SORTED = MergePolicy.SEQUENTIAL, MergePolicy.SORTED
SORTED_BATCH, OFF = MergePolicy.SORTED_BATCH, MergePolicy.OFF
MERGING = [SEQUENTIAL, SORTED, SORTED_BATCH]
ALL = [*MERGING, OFF]


def segments(operation: Operation) -> list[tuple[int, int]]:
    span = slice(operation.first, operation.last)
    return list(zip(operation.offsets[span], operation.lengths[span], strict=True))


# -- one operation for a request, or for several ----------------------------


@pytest.mark.parametrize("policy", ALL)
def test_an_operation_for_one_request_uses_its_segments(policy: MergePolicy) -> None:
    """No segment is copied: the operation looks at the request's own."""
    requests = requests_of([(OUT, 3, 2), (IN, 50, 1), (FLUSH, 0, 0)])
    planner = Planner(policy, Limits())
    planner.durable = True
    write, read, flush = sorted(planner.plan(requests), key=lambda op: op.members[0].head)
    assert (write.kind, write.offset, write.length) == (OUT, 1536, 1024)
    assert (read.kind, read.offset, read.length) == (IN, 50 * 512, 512)
    assert (flush.kind, flush.length, segments(flush)) == (FLUSH, 0, [])
    for operation, request in zip((write, read, flush), requests, strict=True):
        assert operation.members == [request]
        if operation.length:
            request.offsets[0], request.lengths[0] = 77, 88
            assert (operation.offsets[0], operation.lengths[0]) == (77, 88)
        assert request.pending == 1
    assert write.durable


@pytest.mark.parametrize("policy", MERGING)
def test_neighbours_share_an_operation(policy: MergePolicy) -> None:
    requests = [
        request_of(0, OUT, 7, 512, 1024),
        request_of(1, OUT, 10, 512),
        request_of(2, OUT, 11, 100, 412),
    ]
    planner = Planner(policy, Limits())
    planner.durable = True
    (merged,) = planner.plan(requests)
    assert merged.members == requests
    assert (merged.kind, merged.offset, merged.length) == (OUT, 7 * 512, 2560)
    one, two = 1 << 20, 2 << 20
    assert segments(merged) == [(0, 512), (512, 1024), (one, 512), (two, 100), (two + 100, 412)]
    assert [request.pending for request in requests] == [1, 1, 1]
    assert merged.durable
    again = planner.singly(merged)
    assert heads(again) == [[0], [1], [2]]
    assert [operation.offset for operation in again] == [3584, 5120, 5632]


@pytest.mark.parametrize("policy", ALL)
def test_operations_are_reused_and_clean(policy: MergePolicy) -> None:
    planner = Planner(policy, Limits(bytes=1024))
    requests = requests_of([(IN, 0, 1), (IN, 1, 1), (IN, 4, 4), (FLUSH, 0, 0)])
    first = planner.plan(requests)
    plan = [(op.kind, op.offset, segments(op)) for op in first]
    seen = {id(operation) for operation in first}
    for operation in first:
        operation.error, operation.moved = 5, 1
        planner.release(operation)
    second = planner.plan(requests)
    assert plan == [(op.kind, op.offset, segments(op)) for op in second]
    assert all((op.error, op.moved) == (0, 0) for op in second)
    # The split request's own operation is free again at once, and so may be one more.
    assert len(seen | {id(operation) for operation in second}) <= len(seen) + 1


# -- the policies -------------------------------------------------------------

POLICIES = [
    pytest.param(script, sequential, sorted_, batch, id=name)
    for name, script, sequential, sorted_, batch in [
        (
            "in order",
            [(IN, 0, 1), (IN, 1, 2), (IN, 3, 1)],
            [[0, 1, 2]],
            [[0, 1, 2]],
            [[0], [1], [2]],
        ),
        (
            "backwards",
            [(OUT, 2, 1), (OUT, 1, 1), (OUT, 0, 1)],
            [[0], [1], [2]],
            [[2, 1, 0]],
            [[2, 1, 0]],
        ),
        (
            "the picture in merging.md",
            [
                *((OUT, sector, 1) for sector in (40, 90, 0, 1, 2)),
                (IN, 60, 1),
                (OUT, 3, 1),
                (FLUSH, 0, 0),
                (OUT, 4, 1),
                (OUT, 5, 1),
            ],
            [[0], [1], [2, 3, 4], [5], [6], [7], [8, 9]],
            [[2, 3, 4], [0], [1], [5], [6], [7], [8, 9]],
            [[5], [2, 3, 4, 6], [0], [1], [7], [8, 9]],
        ),
        ("gap", [(OUT, 0, 1), (OUT, 2, 1)], [[0], [1]], [[0], [1]], [[0], [1]]),
        (
            "two streams",
            [(OUT, 0, 1), (OUT, 50, 1), (OUT, 1, 1), (OUT, 51, 1)],
            [[0], [1], [2], [3]],
            [[0, 2], [1, 3]],
            [[0, 2], [1, 3]],
        ),
        (
            "directions",
            [(OUT, 0, 1), (IN, 1, 1), (OUT, 1, 1), (OUT, 2, 1)],
            [[0], [1], [2, 3]],
            [[0], [1], [2, 3]],
            [[1], [0, 2, 3]],
        ),
        (
            "a read among writes",
            [(OUT, 0, 1), (IN, 9, 1), (OUT, 1, 1)],
            [[0], [1], [2]],
            [[0], [1], [2]],
            [[1], [0, 2]],
        ),
        (
            "a read of a collected write",
            [(OUT, 0, 2), (IN, 1, 1), (OUT, 2, 1)],
            [[0], [1], [2]],
            [[0], [1], [2]],
            [[0], [1], [2]],
        ),
        (
            "a flush among writes",
            [(OUT, 0, 1), (FLUSH, 0, 0), (OUT, 1, 1), (OUT, 2, 1)],
            [[0], [1], [2, 3]],
            [[0], [1], [2, 3]],
            [[0], [1], [2, 3]],
        ),
        (
            "a flush among reads",
            [(IN, 0, 1), (FLUSH, 0, 0), (IN, 1, 1)],
            [[0], [1], [2]],
            [[1], [0, 2]],
            [[0], [1], [2]],
        ),
        ("flushes", [(FLUSH, 0, 0), (FLUSH, 0, 0)], [[0], [1]], [[0], [1]], [[0], [1]]),
        (
            "a write twice",
            [(OUT, 4, 1), (OUT, 4, 1), (OUT, 3, 1)],
            [[0], [1], [2]],
            [[0], [2, 1]],
            [[0], [2, 1]],
        ),
        (
            "a write into the one before",
            [(OUT, 4, 2), (OUT, 0, 1), (OUT, 5, 1), (OUT, 6, 1)],
            [[0], [1], [2, 3]],
            [[1], [0], [2, 3]],
            [[1], [0], [2, 3]],
        ),
        (
            "a write over a later sector",
            [(OUT, 4, 1), (OUT, 3, 2)],
            [[0], [1]],
            [[0], [1]],
            [[0], [1]],
        ),
        (
            "reads that overlap",
            [(IN, 4, 4), (IN, 6, 1), (IN, 3, 1), (IN, 7, 1)],
            [[0], [1], [2], [3]],
            [[2, 0], [1, 3]],
            [[0], [1], [2], [3]],
        ),
    ]
]


@pytest.mark.parametrize(("script", "sequential", "sorted_", "batch"), POLICIES)
def test_policies(
    script: list[tuple[int, int, int]],
    sequential: list[list[int]],
    sorted_: list[list[int]],
    batch: list[list[int]],
) -> None:
    assert heads(planned(script, SEQUENTIAL)) == sequential
    assert heads(planned(script, SORTED)) == sorted_
    assert heads(planned(script, SORTED_BATCH)) == batch
    assert heads(planned(script, OFF)) == [[i] for i in range(len(script))]


def test_the_example_of_2014() -> None:
    """16 writes that touch no other, then 32 that follow each other.

    Sorting takes the first 32 and so cuts the run in two.
    """
    script = [(OUT, 1000 + 10 * i, 1) for i in range(16)] + [(OUT, i, 1) for i in range(32)]
    alone = [[i] for i in range(16)]
    run = list(range(16, 48))
    assert heads(planned(script, SEQUENTIAL)) == [*alone, run]
    assert heads(planned(script, SORTED)) == [run[:16], *alone, run[16:]]
    assert heads(planned(script, SORTED_BATCH)) == [run[:16], *alone, run[16:]]
    assert heads(planned(script, OFF)) == [[i] for i in range(48)]


# -- limits -------------------------------------------------------------------


@pytest.mark.parametrize("policy", MERGING)
@pytest.mark.parametrize(
    ("limits", "runs"),
    [
        (Limits(requests=3), [[0, 1, 2], [3, 4]]),
        (Limits(requests=1), [[0], [1], [2], [3], [4]]),
        (Limits(segments=6), [[0, 1, 2], [3, 4]]),
        (Limits(segments=5), [[0, 1], [2, 3], [4]]),
        (Limits(bytes=4096), [[0, 1, 2, 3], [4]]),
        (Limits(bytes=4095), [[0, 1, 2], [3, 4]]),
    ],
)
def test_a_run_ends_at_a_limit(policy: MergePolicy, limits: Limits, runs: list[list[int]]) -> None:
    requests = [request_of(i, OUT, 2 * i, 512, 512) for i in range(5)]
    assert heads(Planner(policy, limits).plan(requests)) == runs


@pytest.mark.parametrize("policy", MERGING)
def test_thirty_two_are_the_most_by_default(policy: MergePolicy) -> None:
    script = [(OUT, i, 1) for i in range(70)]
    assert [len(run) for run in heads(planned(script, policy))] == [32, 32, 6]


@pytest.mark.parametrize("policy", ALL)
def test_a_request_that_is_too_long_is_split_and_not_merged(policy: MergePolicy) -> None:
    requests = requests_of([(OUT, 0, 1), (OUT, 1, 5), (OUT, 6, 1)])
    plan = Planner(policy, Limits(bytes=1300)).plan(requests)
    assert heads(plan) == [[0], [1], [1], [1], [2]]
    assert [(op.offset // 512, op.length // 512) for op in plan[1:4]] == [(1, 2), (3, 2), (5, 1)]
    assert segments(plan[2]) == [((1 << 20) + 1024, 1024)]
    assert [request.pending for request in requests] == [1, 3, 1]


def test_a_request_of_very_many_pieces_is_planned_in_steps() -> None:
    planner = Planner(OFF, Limits(bytes=1024, pieces=2))
    planner.durable = True
    request = request_of(0, OUT, 3, *[700] * 8)
    plan = planner.plan([request])
    found: list[tuple[int, int, int, int]] = []
    while plan:
        assert request.pending == len(plan) <= 2
        assert all(op.durable and op.members == [request] for op in plan)
        found += [(op.offset - 1536, op.length, segments(op)[0][0], op.left) for op in plan]
        *others, last = plan
        request.pending -= len(others)
        planner.durable = False  # the first plan counts
        plan = planner.further(last) if last.left else []
    ends = [(0, 0), (1024, 3552), (2048, 0), (3072, 1504), (4096, 0), (5120, 0)]
    assert found == [(at, min(1024, 5600 - at), at, left) for at, left in ends]


def test_a_guest_cannot_make_the_planner_plan_without_end() -> None:
    """A whole ring of the largest requests, on a disk that takes 1.25 MiB at once."""
    requests = [request_of(head, IN, 0, (1 << 32) - 512) for head in range(256)]
    assert len(Planner(OFF, Limits(bytes=5 << 18)).plan(requests)) == 256 * 16


def test_a_request_with_too_many_segments_is_split_at_sectors() -> None:
    request = request_of(0, IN, 9, *[300] * 1024, *[512] * 3)
    plan = Planner(OFF, Limits(segments=600)).plan([request])
    assert [op.length % 512 for op in plan] == [0, 0]
    assert [op.length for op in plan] == [600 * 300 // 512 * 512, request.length - 179712]
    assert all(len(segments(op)) <= 600 for op in plan)
    assert [op.offset for op in plan] == [9 * 512, 9 * 512 + 179712]
    pieces = [piece for op in plan for piece in segments(op)]
    covered = [range(start, start + length) for start, length in pieces]
    assert list(chain.from_iterable(covered)) == list(range(request.length))


def test_a_split_request_of_the_largest_size() -> None:
    """2^32 bytes less a sector, at the end of the largest disk."""
    request = request_of(0, OUT, (1 << 54) - (1 << 23), (1 << 32) - 512)
    plan = Planner(SEQUENTIAL, Limits()).plan([request, request_of(1, OUT, (1 << 54) - 1, 512)])
    assert [op.length for op in plan] == [0x7FFFF000, 0x7FFFF000, 7680, 512]
    assert plan[0].offset == (1 << 63) - (1 << 32)
    assert heads(plan) == [[0], [0], [0], [1]]


def test_below_a_sector_pieces_end_anywhere() -> None:
    """Only tests have such limits."""
    plan = Planner(OFF, Limits(segments=2)).plan([request_of(0, IN, 1, 100, 0, 100, 0, 200, 112)])
    assert [segments(op) for op in plan] == [[(0, 100), (100, 100)], [(200, 200), (400, 112)]]
    assert [op.offset for op in plan] == [512, 712]


def test_the_rest_of_a_short_operation() -> None:
    planner = Planner(OFF, Limits())
    planner.durable = True
    (operation,) = planner.plan([request_of(0, OUT, 4, 512, 512)])
    operation.moved = 700
    rest = planner.rest(operation)
    assert (rest.offset, rest.length, segments(rest)) == (2748, 324, [(700, 324)])
    assert (rest.kind, rest.durable, rest.moved, rest.members) == (OUT, True, 0, operation.members)
