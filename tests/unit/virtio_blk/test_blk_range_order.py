"""Discards and zeroes among other requests: operations, order, second attempts, faults."""

import errno
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from blk_bench import EngineScript, Faults, Maker, Short, benches, sector_of
from blk_edges import waits_for
from blk_ranges import DISCARD, UNMAP, ZEROES, segments
from blk_requests import FLUSH, IN, OUT, request_of
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_OK
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.ordering import Unfinished, order
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.layers.faults import Access, Fault, FaultPlan
from pykvm.hot.words import longs

OK = VIRTIO_BLK_S_OK
EVERY_POLICY = pytest.mark.parametrize("policy", list(MergePolicy))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path) -> Iterator[Maker]:
    with benches(path) as maker:
        yield maker


def ranges_of(head: int, kind: int, *parts: tuple[int, int]) -> Request:
    """An accepted request for these sectors (first, count)."""
    request = request_of(head, kind)
    request.ranges = longs(n for first, count in parts for n in (first * 512, count * 512, 1))
    request.sector = parts[0][0]
    request.length = 512 * sum(count for _, count in parts)
    return request


def planned(requests: Sequence[Request], policy: MergePolicy) -> list[Operation]:
    return Planner(policy, Limits()).plan(requests)


def edges(operations: Sequence[Operation]) -> list[tuple[int, int]]:
    """Pairs of indices: the first operation waits for the second."""
    order(operations, Unfinished())
    found = waits_for(operations)
    return [(index, other) for index, others in enumerate(found) for other in sorted(others)]


# -- operations ---------------------------------------------------------------


@EVERY_POLICY
@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
def test_each_range_is_an_operation_and_none_is_merged(policy: MergePolicy, kind: int) -> None:
    first, second = ranges_of(0, kind, (0, 4), (4, 4)), ranges_of(1, kind, (8, 1))
    made = planned([first, second, request_of(2, OUT, 9, 512)], policy)
    assert [(op.kind, op.offset, op.length, op.unmap) for op in made[:3]] == [
        (kind, 0, 2048, True),
        (kind, 2048, 2048, True),
        (kind, 4096, 512, True),
    ]
    assert [op.members for op in made] == [[first], [first], [second], [made[3].members[0]]]
    assert (first.pending, second.pending) == (2, 1)


@EVERY_POLICY
def test_no_request_passes_a_range_in_the_plan(policy: MergePolicy) -> None:
    """Sorting would let later requests overtake them."""
    requests = [
        request_of(0, OUT, 9, 512),
        request_of(1, IN, 7, 512),
        request_of(2, OUT, 5, 512),
        ranges_of(3, DISCARD, (6, 1)),
        request_of(4, OUT, 4, 512),
        request_of(5, IN, 3, 512),
        ranges_of(6, ZEROES, (1, 1)),
        request_of(7, OUT, 0, 512),
    ]
    heads = [op.members[0].head for op in planned(requests, policy)]
    assert heads.index(3) == 3
    assert heads.index(6) == 6


def test_a_part_of_zeroes_frees_space_as_the_whole_may() -> None:
    (whole,) = planned([ranges_of(0, ZEROES, (8, 8))], MergePolicy.OFF)
    part = Operation()
    part.clip(whole, 1024, 512)
    assert (part.kind, part.offset, part.length, part.unmap) == (ZEROES, 8 * 512 + 1024, 512, True)
    assert part.views(memoryview(b"")) == []


# -- order ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
def test_overlapping_ranges_wait(kind: int) -> None:
    requests = [
        request_of(0, IN, 5, 512),
        ranges_of(1, kind, (4, 2), (20, 2)),
        request_of(2, OUT, 21, 512),
        request_of(3, IN, 30, 512),
        ranges_of(4, kind, (30, 1)),
    ]
    # The second range waits too: if the first one's failure stops the VM, both are tried again.
    assert edges(planned(requests, MergePolicy.OFF)) == [(1, 0), (2, 0), (3, 1), (3, 2), (5, 4)]


def test_the_ranges_of_one_request_do_not_wait_for_each_other() -> None:
    assert edges(planned([ranges_of(0, ZEROES, (0, 4), (2, 4), (0, 1))], MergePolicy.OFF)) == []


def test_adjacent_ranges_do_not_wait() -> None:
    requests = [ranges_of(0, ZEROES, (8, 8), (0, 8)), request_of(1, OUT, 16, 512)]
    assert edges(planned(requests, MergePolicy.OFF)) == []


@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
def test_a_flush_waits_for_the_ranges_before_it(kind: int) -> None:
    earlier = planned([ranges_of(0, kind, (0, 1))], MergePolicy.OFF)
    unfinished = Unfinished()
    order(earlier, unfinished)
    later = planned([ranges_of(1, kind, (8, 1)), request_of(2, FLUSH)], MergePolicy.OFF)
    assert order(later, unfinished) == later[:1]
    assert later[1].waits == 2


# -- in the device ----------------------------------------------------------------


def test_segments_are_read_once(make: Maker, path: Path) -> None:
    """Later changes by the driver have no effect, even on a retry of the request."""
    script = EngineScript(Faults({("write-zeroes", 8): [errno.EIO]}), slow=True)
    bench = make(script, werror=ErrorPolicy.STOP)
    data = segments((8, 1), (9, 1, UNMAP))
    head = bench.send(ZEROES, data=data)
    bench.kick()
    script.wait_for(2)
    memory = bench.transport.ram.bytes
    place = bytes(memory).index(data)
    memory[place : place + len(data)] = segments((0, 9), (0, 9, 7))
    script.release()
    script.release()
    bench.wait_errors(1)
    bench.device.pause()
    bench.device.resume()
    script.wait_for(2)
    script.release()
    script.release()
    assert bench.wait(head)[0] == OK
    assert script.log == [("write-zeroes", 8, 1), ("write-zeroes", 9, 1)] * 2
    assert path.read_bytes()[: 11 * 512] == b"o" * 4096 + bytes(1024) + b"o" * 512


@pytest.mark.parametrize(("kind", "name"), [(DISCARD, "discard"), (ZEROES, "write-zeroes")])
def test_a_request_with_a_bad_range_is_answered_once(make: Maker, kind: int, name: str) -> None:
    script = EngineScript(Faults({(name, 9): [errno.EIO]}))
    bench = make(script)
    head = bench.send(kind, data=segments((0, 1), (8, 2), (16, 1)))
    bench.kick()
    assert bench.wait(head)[0] != OK
    (error,) = bench.errors
    assert (error.operation, error.sector, error.length) == (name, 0, 4 * 512)
    assert len(script.log) == 3


def test_a_request_over_a_failed_range_waits_until_all_ranges_are_done(
    make: Maker, path: Path
) -> None:
    """Zeroes that are tried again must not undo a write that came after them."""
    script = EngineScript(Faults({("write-zeroes", 20): [errno.ENOSPC]}))
    bench = make(script)
    heads = [bench.send(ZEROES, data=segments((3, 1), (20, 1))), bench.write(3, b"n" * 512)]
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    assert sector_of(path, 3) == bytes(512)
    bench.device.resume()
    assert [bench.wait(head)[0] for head in heads] == [OK, OK]
    assert sector_of(path, 3) == b"n" * 512
    assert sector_of(path, 20) == bytes(512)


def test_short_zeroes_are_continued(make: Maker, path: Path) -> None:
    script = EngineScript(Faults({("write-zeroes", 8): [Short(1024)]}))
    bench = make(script)
    head = bench.send(ZEROES, data=segments((8, 8)))
    bench.kick()
    assert bench.wait(head)[0] == OK
    assert script.log == [("write-zeroes", 8, 8), ("write-zeroes", 10, 6)]
    assert path.read_bytes()[: 17 * 512] == b"o" * 4096 + bytes(4096) + b"o" * 512
    assert bench.stats() == {"zero_operations": 1, "zero_bytes": 4096}


# -- faults -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [(DISCARD, "discard"), (ZEROES, "write-zeroes")])
def test_faults_match_ranges_by_name_and_sectors(kind: int, name: str) -> None:
    (operation,) = planned([ranges_of(0, kind, (8, 4))], MergePolicy.OFF)
    assert Access.of(operation) == Access(name, 8, 4)
    plan = FaultPlan([Fault(operation=name, sectors=[0, 8], errno="ENOSPC")])
    effect = plan.effect(operation)
    assert effect is not None
    assert effect.error == errno.ENOSPC
    other = "write" if name == "discard" else "discard"
    assert FaultPlan([Fault(operation=other, errno="EIO")]).effect(operation) is None


# -- any of them ----------------------------------------------------------------------

DISK_SECTORS = 12
_ranges = st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), min_size=1, max_size=3)
_requests = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([IN, OUT, OUT]), _ranges.map(lambda parts: parts[:1])),
        st.tuples(st.sampled_from([DISCARD, ZEROES, ZEROES]), _ranges),
        st.just((FLUSH, [])),
    ),
    max_size=12,
)


def apply(disk: list[int], head: int, kind: int, start: int, end: int) -> list[int]:
    """Apply the operation to ``disk``, a number for each sector; the numbers that it reads."""
    if kind == IN:
        return disk[start:end]
    disk[start:end] = [head if kind == OUT else -kind] * (end - start)
    return []


def started(operation: Operation, ready: list[Operation]) -> None:
    """``operation`` is done: append to ``ready`` the operations that may start now."""
    for follower in operation.followers:
        follower.waits -= 1
        if not follower.waits and follower.members:
            ready.append(follower)
        elif not follower.waits:
            started(follower, ready)


@given(_requests, st.sampled_from(MergePolicy), st.randoms(use_true_random=False))
def test_every_allowed_order_gives_the_result_of_ring_order(
    script: list[tuple[int, list[tuple[int, int]]]], policy: MergePolicy, dice: random.Random
) -> None:
    expected, disk = ([0] * DISK_SECTORS for _ in range(2))
    wanted: dict[int, list[int]] = {}
    requests = []
    for head, (kind, parts) in enumerate(script, 1):
        inside = [(first, min(count, DISK_SECTORS - first)) for first, count in parts]
        for first, count in inside:
            wanted[head] = apply(expected, head, kind, first, first + count)
        if kind >= DISCARD:
            requests.append(ranges_of(head, kind, *inside))
        else:
            first, count = inside[0] if inside else (0, 0)
            requests.append(request_of(head, kind, first, *[512] * count))
    operations = planned(requests, policy)
    ready = order(operations, Unfinished())
    done = 0
    while ready:
        operation = ready.pop(dice.randrange(len(ready)))
        done += 1
        if operation.kind >= DISCARD:
            (request,) = operation.members
            first = operation.offset // 512
            apply(disk, request.head, operation.kind, first, first + operation.length // 512)
        for request in operation.members:
            if operation.kind < FLUSH:
                end = request.sector + request.length // 512
                read = apply(disk, request.head, operation.kind, request.sector, end)
                assert read == wanted[request.head]
        started(operation, ready)
    assert done == len(operations)
    assert disk == expected
