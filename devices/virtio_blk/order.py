"""What must wait for what among the operations of one queue. Pure.

- A flush starts when every write queued before it in the same queue is done,
  whichever drain that came from. A discard is a write here, and so are zeroes.
- Two operations of one drain whose requests overlap, one of them a write, run
  in the order of the plan. (So do all the others, if there are very many.)
  Across drains virtio leaves the order open.

Waiting is for the end of an operation, not for its success; and an operation
that goes on in other pieces (:func:`replace`) ends with the last of them.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
)
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.devices.virtio_blk.request import Request

MANY: Final = 1024
"""As many operations as the largest queue has requests; more are pieces of large ones."""

_by_offset = attrgetter("offset")


def order(operations: Sequence[Operation], unfinished: Iterable[Operation]) -> list[Operation]:
    """Set ``waits`` and ``followers``; returns the operations that may start now.

    ``unfinished`` are the operations of earlier drains of the same queue that
    are not done, started or not.
    """
    writes = flushes = False
    apart = True
    end = 0
    for operation in operations:
        operation.waits = 0
        operation.followers.clear()
        kind = operation.kind
        if kind == VIRTIO_BLK_T_FLUSH:
            flushes = True
            continue
        writes = writes or kind != VIRTIO_BLK_T_IN
        apart = apart and operation.offset >= end
        end = operation.offset + operation.length + operation.left
    # Mostly there are no writes, or each operation is behind the one before it.
    if writes and not apart and _overlapping(operations):
        if len(operations) > MANY:
            _order_all(operations)
        else:
            _order_overlaps(operations)
    if flushes:
        _order_flushes(operations, unfinished)
    return [operation for operation in operations if not operation.waits]


def replace(operation: Operation, successors: Sequence[Operation]) -> None:
    """Let what waits for ``operation`` wait for all of ``successors``, which may start at once."""
    for successor in successors:
        successor.waits = 0
        successor.followers[:] = operation.followers
    for follower in operation.followers:
        follower.waits += len(successors) - 1
    operation.followers.clear()


def _follow(operation: Operation, predecessor: Operation) -> None:
    predecessor.followers.append(operation)
    operation.waits += 1


def _order_flushes(operations: Sequence[Operation], unfinished: Iterable[Operation]) -> None:
    reads = (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_FLUSH)
    earlier = [op for op in unfinished if op.kind not in reads]
    for operation in operations:
        if operation.kind == VIRTIO_BLK_T_FLUSH:
            for predecessor in earlier:
                _follow(operation, predecessor)
            # The next flush need not wait for these writes one by one again.
            earlier = [operation]
        elif operation.kind != VIRTIO_BLK_T_IN:
            earlier.append(operation)


def _overlapping(operations: Sequence[Operation]) -> bool:
    """Do any two operations, with what is left, overlap? Harmless if no write is among them."""
    end = 0
    for operation in sorted(operations, key=_by_offset):
        if operation.length:
            if operation.offset < end:
                return True
            end = operation.offset + operation.length + operation.left
    return False


def _order_all(operations: Sequence[Operation]) -> None:
    """One after another: a guest must not keep us busy with pairs of its requests' pieces."""
    for index in range(1, len(operations)):
        _follow(operations[index], operations[index - 1])


def _order_overlaps(operations: Sequence[Operation]) -> None:
    """Quadratic, for at most MANY, and only for drivers that ask for it.

    A piece or range stands for its whole request: when one is to be tried again
    after a stop, all are, and what overlaps them must not have run meanwhile.
    """
    extents = [_extent(operation) for operation in operations]
    for index, operation in enumerate(operations):
        start, end = extents[index]
        writes = operation.kind != VIRTIO_BLK_T_IN
        for other, (other_start, other_end) in zip(operations[:index], extents, strict=False):
            if (
                (writes or other.kind != VIRTIO_BLK_T_IN)
                and other_start < end
                and start < other_end
                and other.members[0] is not operation.members[0]
            ):
                _follow(operation, other)


def _extent(operation: Operation) -> tuple[int, int]:
    """The bytes of the disk that the members of ``operation`` are for: first, and behind last."""
    if len(operation.members) > 1:
        return operation.offset, operation.offset + operation.length
    return extent(operation.members[0])


def extent(request: Request) -> tuple[int, int]:
    """The bytes of the disk that ``request`` is for: first, and behind last.

    For several ranges, with what is between them.
    """
    if request.type >= VIRTIO_BLK_T_DISCARD:
        ranges = request.ranges
        starts = [ranges[index] for index in range(0, len(ranges), 3)]
        ends = [ranges[index] + ranges[index + 1] for index in range(0, len(ranges), 3)]
        return min(starts), max(ends)
    start = request.sector << SECTOR_SHIFT
    return start, start + request.length
