"""Which operations of a queue wait for which."""

from collections.abc import Sequence

import pytest
from blk_edges import size, waits_for
from blk_requests import FLUSH, IN, OUT, heads, planned

from pykvm.devices.virtio_blk.core.ordering import MANY, Unfinished, order
from pykvm.devices.virtio_blk.core.planner import Limits
from pykvm.devices.virtio_blk.modes import MergePolicy


def ordered(
    script: Sequence[tuple[int, int, int]],
    policy: MergePolicy = MergePolicy.OFF,
    limits: Limits | None = None,
) -> list[set[int]]:
    operations = planned(script, policy, limits)
    ready = order(operations, Unfinished())
    edges = waits_for(operations)
    assert ready == [op for op, edge in zip(operations, edges, strict=True) if not edge]
    return edges


def test_nothing_to_order() -> None:
    assert order([], Unfinished()) == []


def test_reads_wait_for_nothing() -> None:
    assert ordered([(IN, 0, 4), (IN, 2, 4), (IN, 0, 1)]) == [set(), set(), set()]


def test_neighbours_do_not_wait() -> None:
    assert ordered([(OUT, 0, 2), (OUT, 2, 2), (IN, 4, 1)]) == [set(), set(), set()]
    assert ordered([(IN, 4, 1), (OUT, 2, 2), (OUT, 0, 2)]) == [set(), set(), set()]


def test_overlaps_wait() -> None:
    assert ordered([(OUT, 0, 2), (IN, 1, 2), (OUT, 2, 1), (IN, 9, 1)]) == [set(), {0}, {1}, set()]


def test_a_read_waits_for_a_write_inside_it_and_a_write_for_a_read_around_it() -> None:
    assert ordered([(OUT, 5, 1), (IN, 0, 9), (OUT, 3, 1)]) == [set(), {0}, {1}]


def test_an_overlapping_request_waits_for_the_whole_merged_operation() -> None:
    script = [(OUT, 0, 1), (OUT, 1, 1), (OUT, 2, 1), (IN, 1, 1), (IN, 3, 1)]
    operations = planned(script, MergePolicy.SEQUENTIAL)
    assert heads(operations) == [[0, 1, 2], [3], [4]]
    assert ordered(script, MergePolicy.SEQUENTIAL) == [set(), {0}, set()]


def test_an_operation_that_overlaps_one_piece_waits_for_the_whole_request() -> None:
    """If the last piece fails and the VM stops, the first one is written again after it goes on."""
    two = Limits(bytes=1024)
    assert ordered([(OUT, 0, 4), (OUT, 1, 1)], limits=two) == [set(), set(), {0, 1}]
    assert ordered([(IN, 3, 1), (OUT, 0, 4)], limits=two) == [set(), {0}, {0}]


def test_very_many_overlapping_operations_run_in_turn() -> None:
    """Requests, not their pieces; a driver has no reason to send such."""
    script = [(OUT, 0, 4), (FLUSH, 0, 0), *[(IN, 1, 2)] * 40, *[(OUT, 1, 2)] * 40, (OUT, 9, 1)]
    edges = ordered(script, limits=Limits(bytes=1024))
    assert edges[:5] == [set(), set(), {0, 1}, {0, 1}, {3}]
    assert edges[5:] == [{index} for index in range(4, len(edges) - 1)]


def test_up_to_the_limit_operations_wait_only_for_overlapping_ones() -> None:
    count = MANY
    edges = ordered([*[(IN, 0, 1)] * count, *[(OUT, 0, 1)] * count])
    assert edges[:count] == [set()] * count
    assert edges[count:] == [set(range(index)) for index in range(count, 2 * count)]


def test_overlaps_between_reads_do_not_count() -> None:
    edges = ordered([*[(IN, 0, 1)] * 500, (OUT, 0, 1)])
    assert edges == [*[set()] * 500, set(range(500))]


def test_the_number_of_followers_is_no_product() -> None:
    """Of pieces or ranges of requests that overlap, nor of overlapping requests."""
    pieces = planned([(OUT, 0, 500), (OUT, 1, 500)], limits=Limits(bytes=512, pieces=500))
    order(pieces, Unfinished())
    assert waits_for(pieces)[500:] == [set(range(500))] * 500
    assert size(pieces) == 1001
    writes = planned([(OUT, 0, 1)] * 1000)
    order(writes, Unfinished())
    assert size(writes) == 999


def test_a_flush_waits_only_for_earlier_writes() -> None:
    script = [(OUT, 0, 1), (IN, 4, 1), (FLUSH, 0, 0), (OUT, 6, 1), (FLUSH, 0, 0)]
    assert ordered(script) == [set(), set(), {0}, set(), {2, 3}]


def test_a_flush_waits_for_every_piece_and_every_merged_write() -> None:
    script = [(OUT, 0, 4), (OUT, 8, 1), (OUT, 9, 1), (FLUSH, 0, 0)]
    assert ordered(script, MergePolicy.SEQUENTIAL, Limits(bytes=1024))[-1] == {0, 1, 2}


def test_a_flush_waits_for_writes_of_earlier_drains() -> None:
    unfinished = Unfinished()
    earlier = planned([(OUT, 0, 1), (IN, 3, 1)])
    order(earlier, unfinished)
    later = planned([(FLUSH, 0, 0), (IN, 0, 1)])
    assert order(later, unfinished) == later[1:]
    assert waits_for(earlier + later) == [set(), set(), {0}, set()]


def test_a_flush_waits_for_the_previous_flush_and_the_writes_since() -> None:
    """So a flush in each of many drains is no product of flushes and writes."""
    unfinished = Unfinished()
    operations = planned([(OUT, index, 1) for index in range(100)])
    order(operations, unfinished)
    for _ in range(100):
        drain = planned([(FLUSH, 0, 0), (OUT, 1, 1)])
        assert order(drain, unfinished) == drain[1:]
        operations += drain
    edges = waits_for(operations)
    assert edges[100] == set(range(100))
    assert edges[102::2] == [{index, index + 1} for index in range(100, 298, 2)]
    assert list(unfinished) == operations


def test_a_flush_does_not_wait_for_a_flush_that_may_start() -> None:
    unfinished = Unfinished()
    (write, first) = planned([(OUT, 0, 1), (FLUSH, 0, 0)])
    order([write, first], unfinished)
    unfinished.remove(write)
    write.followers.clear()
    first.waits = 0
    (second,) = planned([(FLUSH, 0, 0)])
    assert order([second], unfinished) == [second]
    unfinished.remove(first)
    assert list(unfinished) == [second]


@pytest.mark.parametrize("flush_before", [False, True])
def test_followers_of_an_operation_wait_for_all_that_replace_it(flush_before: bool) -> None:
    unfinished = Unfinished()
    write, flush = planned([(OUT, 0, 3), (FLUSH, 0, 0)])
    order([write, flush] if flush_before else [write], unfinished)
    parts = planned([(OUT, 0, 1), (OUT, 1, 1), (OUT, 2, 1)])
    unfinished.replace(write, parts)
    assert write.followers == []
    assert [part.waits for part in parts] == [0] * 3
    if not flush_before:
        order([flush], unfinished)
    assert flush.waits == 3
    assert [part.followers for part in parts] == [[flush]] * 3
    (last,) = planned([(FLUSH, 0, 0)])
    order([last], unfinished)
    assert waits_for([*parts, flush, last])[3:] == [{0, 1, 2}, {3}], "none waits twice"


def test_a_reused_operation_drops_its_old_waits() -> None:
    operations = planned([(OUT, 0, 1), (OUT, 0, 1)])
    order(operations, Unfinished())
    assert order(operations[1:], Unfinished()) == operations[1:]
    assert order(operations[:1], Unfinished()) == operations[:1]
    assert operations[0].followers == []
