"""Decides which operations of one queue must wait for which. Pure.

- A flush starts when every write queued before it in the same queue has
  completed, in this drain or an earlier one. Discards and requests that write
  zeroes count as writes here.
- Two operations of one drain whose requests overlap, one of them a write, run
  in the order of the plan. (If very many pairs overlap, all operations do.)
  Virtio leaves the order across drains open.

An operation waits for the end of another one, not for its success. If other
operations replace an operation (:meth:`Unfinished.replace`), it ends with the
last of them.

The driver decides how many operations wait for how many, so the work must not
grow with the product of the two. A flush waits for the operations since the
previous flush, and for that flush. An operation that waits for all operations of
a request waits for one joint of them::

    write ─┐            write ─┐        piece ─┐         ┌─ range
    write ─┴─► flush ──►───────┴─► flush  piece ─┴─► joint ─┴─ range
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import Request

MANY: Final = 16
"""If more pairs overlap than this number times the requests, the requests run one by one."""

_by_offset = attrgetter("offset")
_by_start = attrgetter("start")


class Unfinished:
    """The operations of a queue that are ordered and have not completed, started or not.

    ``recent`` holds the last flush and the operations after it. ``covered``
    holds the earlier ones: the last flush waits for them where it must, so no
    later flush has to.
    """

    recent: dict[Operation, None]  # dicts, because sets have no order
    covered: dict[Operation, None]

    def __init__(self) -> None:
        self.recent = {}
        self.covered = {}

    def __iter__(self) -> Iterator[Operation]:
        yield from self.covered
        yield from self.recent

    def remove(self, operation: Operation) -> None:
        """``operation`` has completed."""
        if operation in self.recent:
            del self.recent[operation]
        else:
            del self.covered[operation]

    def replace(self, operation: Operation, successors: Sequence[Operation]) -> None:
        """Make the followers of ``operation`` wait for all of ``successors``, which may start."""
        successor: Operation
        follower: Operation
        for successor in successors:
            successor.waits = 0
            successor.followers[:] = operation.followers
        for follower in operation.followers:
            follower.waits += len(successors) - 1
        operation.followers.clear()
        if operation in self.recent:
            del self.recent[operation]
            self.recent.update(dict.fromkeys(successors))
        else:
            del self.covered[operation]
            self.covered.update(dict.fromkeys(successors))

    def clear(self) -> None:
        """Drop all operations and their followers."""
        for operation in self:
            operation.followers.clear()
        self.recent.clear()
        self.covered.clear()


def order(operations: Sequence[Operation], unfinished: Unfinished) -> list[Operation]:
    """Set ``waits`` and ``followers``; returns the operations that may start now.

    ``operations`` are those of one drain. They become ``unfinished``, which
    holds those of earlier drains of the same queue.
    """
    if len(operations) == 1 and operations[0].kind != VIRTIO_BLK_T_FLUSH:
        only: Operation = operations[0]
        only.waits = 0
        only.followers.clear()
        unfinished.recent[only] = None
        return [only]
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
    # In most drains there are no writes, or each operation begins behind the previous one.
    if writes and not apart and _overlapping(operations):
        _order_overlaps(operations)
    if flushes:
        _order_flushes(operations, unfinished)
    else:
        unfinished.recent.update(dict.fromkeys(operations))
    return [operation for operation in operations if not operation.waits]


def _follow(operation: Operation, predecessor: Operation) -> None:
    predecessor.followers.append(operation)
    operation.waits += 1


def _order_flushes(operations: Sequence[Operation], unfinished: Unfinished) -> None:
    predecessor: Operation
    recent = unfinished.recent
    for operation in operations:
        if operation.kind == VIRTIO_BLK_T_FLUSH:
            for predecessor in recent:
                kind = predecessor.kind
                # A flush that waits for nothing has no unfinished write before it.
                if kind != VIRTIO_BLK_T_IN and (kind != VIRTIO_BLK_T_FLUSH or predecessor.waits):
                    _follow(operation, predecessor)
            unfinished.covered.update(recent)
            recent.clear()
        recent[operation] = None


def _overlapping(operations: Sequence[Operation]) -> bool:
    """True if any two operations overlap, with the bytes left of their requests.

    Two reads count, too; they need no order, but it does no harm.
    """
    end = 0
    for operation in sorted(operations, key=_by_offset):
        if operation.length:
            if operation.offset < end:
                return True
            end = operation.offset + operation.length + operation.left
    return False


class _Unit:
    """The operations of one request, or one merged operation; number ``index`` of its drain.

    They cover the bytes of the disk from ``start`` up to ``end``. They are
    ordered together: after a stop, all of them are executed again if one is, and
    no operation that overlaps any of them may have run meanwhile.
    """

    index: int
    start: int
    end: int
    operations: list[Operation]
    _entry: Operation | None
    _exit: Operation | None

    def __init__(self, index: int, operation: Operation) -> None:
        self.index = index
        if len(operation.members) > 1:
            self.start, self.end = operation.offset, operation.offset + operation.length
        else:
            self.start, self.end = extent(operation.members[0])
        self.operations = [operation]
        self._entry = self._exit = None

    def entry(self) -> Operation:
        """The operation, or joint, that waits on behalf of all."""
        if len(self.operations) == 1:
            return self.operations[0]
        if self._entry is None:
            self._entry = Operation()
            for operation in self.operations:
                _follow(operation, self._entry)
        return self._entry

    def exit(self) -> Operation:
        """The operation, or joint, that completes when all have."""
        if len(self.operations) == 1:
            return self.operations[0]
        if self._exit is None:
            self._exit = Operation()
            for operation in self.operations:
                _follow(self._exit, operation)
        return self._exit


def _order_overlaps(operations: Sequence[Operation]) -> None:
    units = _units(operations)
    for later, earlier in _conflicts(units):
        _follow(units[later].entry(), units[earlier].exit())


def _units(operations: Sequence[Operation]) -> list[_Unit]:
    units: list[_Unit] = []
    for operation in operations:
        if operation.kind == VIRTIO_BLK_T_FLUSH:
            continue
        # No request is in two units, because the pieces of a request are adjacent in the plan.
        if units and units[-1].operations[0].members[0] is operation.members[0]:
            units[-1].operations.append(operation)
        else:
            units.append(_Unit(len(units), operation))
    return units


def _conflicts(units: Sequence[_Unit]) -> list[tuple[int, int]]:
    """The pairs (later, earlier) of units that overlap, one of them a write.

    If these are too many, each unit and the previous one. The sweep goes over the
    disk by start. It compares each unit only with units that begin before it and
    end behind its start, so each comparison finds a pair.
    """
    unit: _Unit
    other: _Unit
    pairs: list[tuple[int, int]] = []
    reads: list[_Unit] = []
    writes: list[_Unit] = []
    for unit in sorted(units, key=_by_start):
        start, index = unit.start, unit.index
        writes = [other for other in writes if other.end > start]
        overlapping = list(writes)
        if unit.operations[0].kind == VIRTIO_BLK_T_IN:
            reads.append(unit)
        else:
            reads = [other for other in reads if other.end > start]
            overlapping += reads
            writes.append(unit)
        for other in overlapping:
            pairs.append((max(index, other.index), min(index, other.index)))
        if len(pairs) > MANY * len(units):
            return [(later, later - 1) for later in range(1, len(units))]
    pairs.sort()
    return pairs


def extent(request: Request) -> tuple[int, int]:
    """The first byte of the disk that ``request`` touches, and the byte behind the last.

    Between several ranges, it includes bytes that no range touches.
    """
    if request.type >= VIRTIO_BLK_T_DISCARD:
        ranges = request.ranges
        starts = [ranges[index] for index in range(0, len(ranges), 3)]
        ends = [ranges[index] + ranges[index + 1] for index in range(0, len(ranges), 3)]
        return min(starts), max(ends)
    start = request.sector << SECTOR_SHIFT
    return start, start + request.length
