"""What must wait for what among the operations of a queue."""

from collections.abc import Sequence

from blk_requests import FLUSH, IN, OUT, heads, planned

from pykvm.devices.virtio_blk.operation import Operation
from pykvm.devices.virtio_blk.options import MergePolicy
from pykvm.devices.virtio_blk.order import order, replace
from pykvm.devices.virtio_blk.plan import Limits


def waits_for(operations: Sequence[Operation]) -> list[set[int]]:
    """For each operation the indices that it waits for itself."""
    edges: list[set[int]] = [set() for _ in operations]
    index = {id(operation): i for i, operation in enumerate(operations)}
    for i, operation in enumerate(operations):
        for follower in operation.followers:
            edges[index[id(follower)]].add(i)
    assert [len(edge) for edge in edges] == [operation.waits for operation in operations]
    return edges


def ordered(
    script: Sequence[tuple[int, int, int]],
    policy: MergePolicy = MergePolicy.OFF,
    limits: Limits | None = None,
) -> list[set[int]]:
    operations = planned(script, policy, limits)
    ready = order(operations, [])
    edges = waits_for(operations)
    assert ready == [op for op, edge in zip(operations, edges, strict=True) if not edge]
    return edges


def test_nothing_to_order() -> None:
    assert order([], []) == []


def test_reads_wait_for_nothing() -> None:
    assert ordered([(IN, 0, 4), (IN, 2, 4), (IN, 0, 1)]) == [set(), set(), set()]


def test_neighbours_do_not_wait() -> None:
    assert ordered([(OUT, 0, 2), (OUT, 2, 2), (IN, 4, 1)]) == [set(), set(), set()]
    assert ordered([(IN, 4, 1), (OUT, 2, 2), (OUT, 0, 2)]) == [set(), set(), set()]


def test_overlaps_wait() -> None:
    assert ordered([(OUT, 0, 2), (IN, 1, 2), (OUT, 2, 1), (IN, 9, 1)]) == [set(), {0}, {1}, set()]


def test_a_read_waits_for_a_write_inside_it_and_a_write_for_a_read_around_it() -> None:
    assert ordered([(OUT, 5, 1), (IN, 0, 9), (OUT, 3, 1)]) == [set(), {0}, {1}]


def test_what_overlaps_waits_for_a_merged_operation_as_a_whole() -> None:
    script = [(OUT, 0, 1), (OUT, 1, 1), (OUT, 2, 1), (IN, 1, 1), (IN, 3, 1)]
    operations = planned(script, MergePolicy.SEQUENTIAL)
    assert heads(operations) == [[0, 1, 2], [3], [4]]
    assert ordered(script, MergePolicy.SEQUENTIAL) == [set(), {0}, set()]


def test_what_overlaps_one_piece_waits_for_the_whole_request() -> None:
    """If the last piece fails and the VM stops, the first one is written again after it goes on."""
    two = Limits(bytes=1024)
    assert ordered([(OUT, 0, 4), (OUT, 1, 1)], limits=two) == [set(), set(), {0, 1}]
    assert ordered([(IN, 3, 1), (OUT, 0, 4)], limits=two) == [set(), {0}, {0}]


def test_very_many_that_overlap_run_in_turn() -> None:
    """A few large requests can have so many pieces that their pairs are not to be counted."""
    script = [(OUT, 0, 3000), (IN, 0, 3000), (FLUSH, 0, 0), (OUT, 1, 1)]
    edges = ordered(script, limits=Limits(bytes=512, pieces=3000))
    assert len(edges) == 6002
    assert edges[:6000] == [set(), *({index} for index in range(5999))]
    assert edges[6000] == {5999, *range(3000)}
    assert edges[6001] == {6000}


def test_a_flush_waits_for_earlier_writes_alone() -> None:
    script = [(OUT, 0, 1), (IN, 4, 1), (FLUSH, 0, 0), (OUT, 6, 1), (FLUSH, 0, 0)]
    assert ordered(script) == [set(), set(), {0}, set(), {2, 3}]


def test_a_flush_waits_for_every_piece_and_every_merged_write() -> None:
    script = [(OUT, 0, 4), (OUT, 8, 1), (OUT, 9, 1), (FLUSH, 0, 0)]
    assert ordered(script, MergePolicy.SEQUENTIAL, Limits(bytes=1024))[-1] == {0, 1, 2}


def test_a_flush_waits_for_writes_of_earlier_drains() -> None:
    earlier = planned([(OUT, 0, 1), (IN, 3, 1)])
    order(earlier, [])
    later = planned([(FLUSH, 0, 0), (IN, 0, 1)])
    assert order(later, earlier) == later[1:]
    assert later[0].waits == 1
    assert earlier[0].followers == [later[0]]
    assert earlier[1].followers == []


def test_what_waits_for_an_operation_waits_for_all_that_replace_it() -> None:
    write, flush = planned([(OUT, 0, 3), (FLUSH, 0, 0)])
    order([write, flush], [])
    parts = planned([(OUT, 0, 1), (OUT, 1, 1), (OUT, 2, 1)])
    replace(write, parts)
    assert write.followers == []
    assert flush.waits == 3
    assert [part.followers for part in parts] == [[flush]] * 3
    assert [part.waits for part in parts] == [0] * 3


def test_an_operation_that_is_used_again_waits_for_nothing_old() -> None:
    operations = planned([(OUT, 0, 1), (OUT, 0, 1)])
    order(operations, [])
    assert order(operations[1:], []) == operations[1:]
    assert order(operations[:1], []) == operations[:1]
    assert operations[0].followers == []
