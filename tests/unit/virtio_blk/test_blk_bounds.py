"""The memory that a driver with a large queue can make the device hold is limited per entry."""

from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest
from blk_device import IN, OK, OUT, Disk, Maker, disk_file, disks
from blk_edges import nodes, size
from blk_ranges import ZEROES
from blk_requests import FLUSH, request_of

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.planner import SPARE, Limits, Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.core.scheduler import Schedule
from pykvm.devices.virtio_blk.modes import ErrorAction, MergePolicy
from pykvm.hot.words import longs
from pykvm.memory.ram import Ram
from pykvm.testing.inline_threads import InlineThreads
from pykvm.testing.split_driver import Buffer
from pykvm.virtio.chain import ROOM_KEPT

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
def test_dependencies_grow_with_the_requests_and_not_with_their_square(shape: str) -> None:
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


# -- memory --------------------------------------------------------------------------

SEGMENTS = 1024


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    with disks(disk_file(tmp_path)) as maker:
        yield maker


def segments_kept(disk: Disk) -> int:
    """The most that one chain, request or operation of the disk has room for."""
    service = disk.device._threads._services[0]
    rooms = [len(chain.offsets) for chain in service.queue.chains]
    rooms += [len(request.offsets) for request in service._requests]
    for one in service._planner._free:
        rooms += [len(one.offsets), len(one.lengths), len(one._own_offsets)]
    return max(rooms)


def serve(disk: Disk) -> None:
    disk.transport.submit()
    threads = disk.device._threads
    assert isinstance(threads, InlineThreads)
    threads.serve()


@pytest.mark.parametrize("kind", [IN, OUT, 99])
@pytest.mark.parametrize("cut", [False, True], ids=["a header of one", "a header of two"])
def test_no_room_for_long_requests_is_kept(make: Maker, kind: int, cut: bool) -> None:
    disk = make(queue_size=64, ram=Ram.flat(4 << 20), threads=InlineThreads)
    driver = disk.transport.drivers[0]
    header, data = driver.put(pack("<IIQ", kind, 0, 0)), driver.alloc(SEGMENTS)
    buffers = [Buffer(header, 8, False), Buffer(header + 8, 8, False)]
    if not cut:
        buffers = [Buffer(header, 16, False)]
    buffers += [Buffer(data + index, 1, kind != OUT) for index in range(SEGMENTS)]
    if cut:  # into more than the longest table has room for
        buffers[-2:] = [Buffer(data, 2, kind != OUT)]
    buffers.append(Buffer(driver.alloc(1), 1, True))
    heads = [driver.add(buffers, indirect=True) for _ in range(32)]
    serve(disk)
    used = dict(disk.transport.collect(0))
    assert used == dict.fromkeys(heads, {IN: SEGMENTS + 1, OUT: 1, 99: 0}[kind])
    assert segments_kept(disk) <= ROOM_KEPT


def test_room_for_the_largest_request_of_linux_is_kept(make: Maker) -> None:
    """Or each large request would pay for it."""
    disk = make(queue_size=256, threads=InlineThreads, ram=Ram.flat(4 << 20))
    header = pack("<IIQ", IN, 0, 0)
    head = disk.transport.drivers[0].send([header], [*[512] * 254, 1])
    serve(disk)
    assert disk.wait(head)[0] == OK
    assert (
        segments_kept(disk)
        == ROOM_KEPT
        == len(disk.device._threads._services[0].queue.chains[head].offsets)
    )


def test_the_pieces_of_a_request_have_room_for_its_segments_once() -> None:
    limits = Limits(bytes=1024)
    operations = Planner(MergePolicy.OFF, limits).plan([request_of(0, OUT, 0, *[512] * 400)])
    assert len(operations) == limits.pieces
    assert sum(len(one._own_offsets) for one in operations) == 2 * limits.pieces


def test_the_planner_keeps_a_limited_number_of_free_operations() -> None:
    planner = Planner(MergePolicy.OFF, Limits())
    for operation in planner.plan([zeroes(head) for head in range(2 * SPARE // 32)]):
        planner.release(operation)
    assert len(planner._free) == SPARE
