"""The planner and the order among operations.

The contract: run the operations in any order that the edges allow, and the
disk, every read and every flush see what they would see if the requests had
run one after another in the order of the ring.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.devices.virtio_blk.options import MergePolicy
from pykvm.devices.virtio_blk.order import order
from pykvm.devices.virtio_blk.plan import Limits, Planner
from pykvm.devices.virtio_blk.request import Request

IN, OUT, FLUSH = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH
SECTORS = 12


def requests_of(script: Sequence[tuple[int, int, int]]) -> list[Request]:
    """Requests from (type, sector, sectors); each has one segment."""
    made = []
    for head, (kind, sector, count) in enumerate(script):
        request = Request(head)
        request.type = kind
        request.sector = sector if kind != FLUSH else 0
        request.length = count * 512 if kind != FLUSH else 0
        request.offsets = array("q", [head << 20])
        request.lengths = array("q", [request.length])
        request.last = 0 if kind == FLUSH else 1
        made.append(request)
    return made


def planned(requests: Sequence[Request], durable: bool = False) -> list[Operation]:
    planner = Planner(MergePolicy.OFF, Limits())
    planner.durable = durable
    return planner.plan(requests)


def waits_for(operations: Sequence[Operation]) -> list[set[int]]:
    """For each operation the indices that it waits for itself."""
    edges: list[set[int]] = [set() for _ in operations]
    index = {id(operation): i for i, operation in enumerate(operations)}
    for i, operation in enumerate(operations):
        for follower in operation.followers:
            edges[index[id(follower)]].add(i)
    assert [len(edge) for edge in edges] == [operation.waits for operation in operations]
    return edges


def ordered(script: Sequence[tuple[int, int, int]]) -> list[set[int]]:
    operations = planned(requests_of(script))
    ready = order(operations, [])
    edges = waits_for(operations)
    assert ready == [op for op, edge in zip(operations, edges, strict=True) if not edge]
    return edges


def test_one_operation_for_each_request() -> None:
    requests = requests_of([(OUT, 3, 2), (IN, 5, 1), (FLUSH, 0, 0)])
    write, read, flush = planned(requests, durable=True)
    assert (write.kind, write.offset, write.length) == (OUT, 1536, 1024)
    assert (write.first, write.last, write.offsets[0], write.lengths[0]) == (0, 1, 0, 1024)
    assert (read.kind, read.offset, read.length, read.offsets[0]) == (IN, 2560, 512, 1 << 20)
    assert (flush.kind, flush.length) == (FLUSH, 0)
    assert [op.members for op in (write, read, flush)] == [[r] for r in requests]
    assert write.durable


def test_an_operation_starts_without_its_predecessors_error() -> None:
    requests = requests_of([(IN, 0, 1)])
    planner = Planner(MergePolicy.OFF, Limits())
    (operation,) = planner.plan(requests)
    operation.error = 5
    planner.release(operation)
    assert planner.plan(requests)[0].error == 0


def test_reads_wait_for_nothing() -> None:
    assert ordered([(IN, 0, 4), (IN, 2, 4), (IN, 0, 1)]) == [set(), set(), set()]


def test_neighbours_do_not_wait() -> None:
    assert ordered([(OUT, 0, 2), (OUT, 2, 2), (IN, 4, 1)]) == [set(), set(), set()]


def test_overlaps_wait() -> None:
    assert ordered([(OUT, 0, 2), (IN, 1, 2), (OUT, 2, 1), (IN, 9, 1)]) == [set(), {0}, {1}, set()]


def test_a_flush_waits_for_earlier_writes_alone() -> None:
    script = [(OUT, 0, 1), (IN, 4, 1), (FLUSH, 0, 0), (OUT, 6, 1), (FLUSH, 0, 0)]
    assert ordered(script) == [set(), set(), {0}, set(), {2, 3}]


def test_a_flush_waits_for_writes_of_earlier_drains() -> None:
    earlier = planned(requests_of([(OUT, 0, 1), (IN, 3, 1)]))
    order(earlier, [])
    later = planned(requests_of([(FLUSH, 0, 0), (IN, 0, 1)]))
    assert order(later, earlier) == later[1:]
    assert later[0].waits == 1
    assert earlier[0].followers == [later[0]]
    assert earlier[1].followers == []


@dataclass
class Model:
    """A disk of one number per sector, each write storing its own head."""

    sectors: list[int]
    reads: dict[int, list[int]]
    flushed: dict[int, set[int]]
    written: set[int]

    @classmethod
    def new(cls) -> "Model":
        return cls([-1] * SECTORS, {}, {}, set())

    def execute(self, operation: Operation) -> None:
        head = operation.members[0].head
        span = slice(operation.offset // 512, (operation.offset + operation.length) // 512)
        if operation.kind == OUT:
            self.sectors[span] = [head] * len(self.sectors[span])
            self.written.add(head)
        elif operation.kind == IN:
            self.reads[head] = self.sectors[span]
        else:
            self.flushed[head] = set(self.written)


item = st.tuples(st.sampled_from([IN, OUT, OUT, FLUSH]), st.integers(0, 8), st.integers(1, 4))


@given(st.lists(item, max_size=14), st.data())
def test_any_allowed_order_gives_what_the_ring_order_gives(
    script: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    operations = planned(requests_of(script))
    expected = Model.new()
    for operation in operations:
        expected.execute(operation)

    ready = order(operations, [])
    actual = Model.new()
    while ready:
        operation = ready.pop(data.draw(st.integers(0, len(ready) - 1)))
        actual.execute(operation)
        for follower in operation.followers:
            follower.waits -= 1
            if not follower.waits:
                ready.append(follower)

    assert actual.sectors == expected.sectors
    assert actual.reads == expected.reads
    assert actual.written == expected.written
    assert actual.flushed.keys() == expected.flushed.keys()
    for head, needed in expected.flushed.items():
        assert needed <= actual.flushed[head]
