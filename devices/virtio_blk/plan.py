"""From the requests of one drain to I/O operations, and the order among them. Pure.

Two steps, because engines differ:

1. :meth:`Planner.plan` turns requests into operations. Executing the operations
   one after another, in the order of the list, leaves the same bytes and the
   same statuses as executing the requests one after another.
2. :func:`order` tells an engine that runs operations side by side what must
   wait for what. An engine that executes in order does not need it.

The rules of order:

- A flush starts when every write queued before it in the same queue is done,
  whichever drain that came from.
- Two operations of one drain that overlap, one of them a write, run in the
  order of the queue. Across drains virtio leaves the order open.

Waiting is for the end of an operation, not for its success.
"""

from array import array
from collections.abc import Iterable, Sequence
from operator import attrgetter

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.request import Request

_by_offset = attrgetter("offset")


class Operation:
    """One I/O operation that an engine executes for one or more requests.

    ``kind`` is the VIRTIO_BLK_T_* of its ``members``, which lie one after
    another on the disk: ``length`` bytes from byte ``offset``. The data is in
    ``ram.bytes[offsets[i] : offsets[i] + lengths[i]]`` for i from ``first`` up
    to, not including, ``last``. ``durable``: a write is done only when it is
    on stable storage.

    The engine sets ``error``, an errno or 0, and ``finished_ns``
    (time.monotonic_ns). ``waits`` counts the operations that must be done
    before this one starts, and ``followers`` are those that wait for this one.
    """

    __slots__ = (
        "durable",
        "error",
        "finished_ns",
        "first",
        "followers",
        "kind",
        "last",
        "length",
        "lengths",
        "members",
        "offset",
        "offsets",
        "waits",
    )

    def __init__(self, members: list[Request]) -> None:
        self.members = members
        self.kind = VIRTIO_BLK_T_IN
        self.offset = 0
        self.length = 0
        self.offsets = array("q")
        self.lengths = array("q")
        self.first = 0
        self.last = 0
        self.durable = False
        self.error = 0
        self.finished_ns = 0
        self.waits = 0
        self.followers: list[Operation] = []


class Planner:
    """Plans the requests of one queue: one operation for each request.

    ``durable``: the driver knows no flush, so each write is one in itself
    (virtio 1.2 §5.2.6.2).
    """

    def __init__(self, requests: Sequence[Request], durable: bool) -> None:
        """``requests[head]`` are all those that :meth:`plan` may ever see."""
        self._singles = tuple(Operation([request]) for request in requests)
        self._durable = durable

    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        """The operations for ``requests``, which are accepted and in the order of the ring.

        An operation belongs to the caller until the heads of its members are pushed.
        """
        return [self.single(request) for request in requests]

    def single(self, request: Request) -> Operation:
        """The operation that executes ``request`` alone."""
        operation = self._singles[request.head]
        operation.kind = request.type
        operation.offset = request.sector << SECTOR_SHIFT
        operation.length = request.length
        operation.offsets = request.offsets
        operation.lengths = request.lengths
        operation.first = request.first
        operation.last = request.last
        operation.durable = self._durable
        operation.error = 0
        return operation


def order(operations: Sequence[Operation], unfinished: Iterable[Operation]) -> list[Operation]:
    """Set ``waits`` and ``followers``; returns the operations that may start now.

    ``unfinished`` are the operations of earlier drains of the same queue that
    are not done, started or not.
    """
    for operation in operations:
        operation.waits = 0
        operation.followers.clear()
    if _overlapping(operations):
        _order_overlaps(operations)
    _order_flushes(operations, unfinished)
    return [operation for operation in operations if not operation.waits]


def _follow(operation: Operation, predecessor: Operation) -> None:
    predecessor.followers.append(operation)
    operation.waits += 1


def _order_flushes(operations: Sequence[Operation], unfinished: Iterable[Operation]) -> None:
    if all(operation.kind != VIRTIO_BLK_T_FLUSH for operation in operations):
        return
    earlier = [op for op in unfinished if op.kind == VIRTIO_BLK_T_OUT]
    for operation in operations:
        if operation.kind == VIRTIO_BLK_T_OUT:
            earlier.append(operation)
        elif operation.kind == VIRTIO_BLK_T_FLUSH:
            for predecessor in earlier:
                _follow(operation, predecessor)
            # The next flush need not wait for these writes one by one again.
            earlier = [operation]


def _overlapping(operations: Sequence[Operation]) -> bool:
    """Do any two operations overlap, one of them a write? False positives are harmless."""
    if all(operation.kind != VIRTIO_BLK_T_OUT for operation in operations):
        return False
    end = 0
    for operation in sorted(operations, key=_by_offset):
        if operation.length:
            if operation.offset < end:
                return True
            end = operation.offset + operation.length
    return False


def _order_overlaps(operations: Sequence[Operation]) -> None:
    """Quadratic, in a drain of at most a queue's size, and only for drivers that ask for it."""
    for index, operation in enumerate(operations):
        start, end = operation.offset, operation.offset + operation.length
        writes = operation.kind == VIRTIO_BLK_T_OUT
        for other in operations[:index]:
            if (
                (writes or other.kind == VIRTIO_BLK_T_OUT)
                and other.offset < end
                and start < other.offset + other.length
            ):
                _follow(operation, other)
