"""What a driver with a large queue can make the device hold: no more than so much per entry."""

import pytest
from blk_edges import nodes, size
from blk_ranges import ZEROES
from blk_requests import FLUSH, IN, OUT, request_of

from pykvm.devices.virtio_blk.operation import Operation
from pykvm.devices.virtio_blk.options import ErrorAction, MergePolicy
from pykvm.devices.virtio_blk.plan import Limits, Planner
from pykvm.devices.virtio_blk.request import Request
from pykvm.devices.virtio_blk.schedule import Schedule
from pykvm.native import longs

ENTRIES = 256


def schedule_of(limits: Limits) -> Schedule:
    return Schedule(Planner(MergePolicy.OFF, limits), lambda request: ErrorAction.REPORT)


def zeroes(head: int) -> Request:
    """32 ranges all over the disk."""
    request = request_of(head, ZEROES)
    request.ranges = longs(number for index in range(32) for number in (index << 20, 512, 1))
    request.length = 32 * 512
    return request


LIMITS = Limits(bytes=1024)
SHAPES = {
    "writes, then a flush per drain": (
        [request_of(head, OUT, head, 512) for head in range(ENTRIES // 2)],
        [[request_of(head, FLUSH)] for head in range(ENTRIES // 2, ENTRIES)],
    ),
    "zeroes, then flushes": (
        [zeroes(head) for head in range(ENTRIES // 2)],
        [[request_of(head, FLUSH)] for head in range(ENTRIES // 2, ENTRIES)],
    ),
    "writes of one sector": ([request_of(head, OUT, 7, 512) for head in range(ENTRIES)], []),
    "reads and writes of one sector": (
        [request_of(head, (IN, OUT)[head % 2], 7, 512) for head in range(ENTRIES)],
        [],
    ),
    "large writes over each other": (
        [request_of(head, OUT, head, *[512] * 40) for head in range(ENTRIES)],
        [],
    ),
    "zeroes over each other": ([zeroes(head) for head in range(ENTRIES)], []),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_waits_for_what_is_no_product(shape: str) -> None:
    first, others = SHAPES[shape]
    schedule = schedule_of(LIMITS)
    for drain in (first, *others):
        schedule.add(drain)
    operations = list(schedule._unfinished)
    assert len(operations) <= ENTRIES * 32
    assert len(nodes(operations)) <= len(operations) + 2 * ENTRIES
    assert size(operations) <= 3 * len(operations) + 16 * ENTRIES
    answered = 0
    ready: list[Operation]
    while ready := schedule.take():
        for operation in ready:
            operation.moved = operation.length
            answered += len(schedule.finish(operation))
    assert answered == ENTRIES, "and all of it is executed in the end"
