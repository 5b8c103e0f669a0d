"""What must wait for what among the operations of one queue. Pure.

- A flush starts when every write queued before it in the same queue is done,
  whichever drain that came from. A discard is a write here, and so are zeroes.
- Two operations of one drain whose requests overlap, one of them a write, run
  in the order of the plan. (So do all the others, if there are very many.)
  Across drains virtio leaves the order open.

Waiting is for the end of an operation, not for its success; and an operation
that goes on in other pieces (:meth:`Unfinished.replace`) ends with the last of
them.

A driver decides how much waits for how much, so nothing here is a product. A
flush waits for what came since the flush before it, and for that one; whoever
is to wait for all operations of a request waits for one joint of them::

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
"""If more pairs of requests overlap than so many times their number, they run one after another."""

_by_offset = attrgetter("offset")
_by_start = attrgetter("start")


class Unfinished:
    """The operations of a queue that were ordered and are not done, started or not.

    ``recent`` holds the last flush and what came after it. The last flush waits
    for those in ``covered``, or need not, so no later one is to wait for them.
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
        """``operation`` is done."""
        if operation in self.recent:
            del self.recent[operation]
        else:
            del self.covered[operation]

    def replace(self, operation: Operation, successors: Sequence[Operation]) -> None:
        """Let what waits for ``operation`` wait for all of ``successors``, which may start."""
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
        """Forget all of them, and who waits for them."""
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
    # Mostly there are no writes, or each operation is behind the one before it.
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
                # A flush that waits for nothing any more has nothing left before it.
                if kind != VIRTIO_BLK_T_IN and (kind != VIRTIO_BLK_T_FLUSH or predecessor.waits):
                    _follow(operation, predecessor)
            unfinished.covered.update(recent)
            recent.clear()
        recent[operation] = None


def _overlapping(operations: Sequence[Operation]) -> bool:
    """Do any two operations, with what is left, overlap? Harmless if no write is among them."""
    end = 0
    for operation in sorted(operations, key=_by_offset):
        if operation.length:
            if operation.offset < end:
                return True
            end = operation.offset + operation.length + operation.left
    return False


class _Unit:
    """The operations of one request, or a merged one; the ``index``-th of its drain.

    They are for the bytes of the disk from ``start`` up to ``end``. One of them
    stands for all: when one is to be tried again after a stop, all are, and what
    overlaps them must not have run meanwhile.
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
        """What waits for others on behalf of all."""
        if len(self.operations) == 1:
            return self.operations[0]
        if self._entry is None:
            self._entry = Operation()
            for operation in self.operations:
                _follow(operation, self._entry)
        return self._entry

    def exit(self) -> Operation:
        """What is done when all are."""
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
        # Merged or not, no request is in two of them; the pieces of one are side by side.
        if units and units[-1].operations[0].members[0] is operation.members[0]:
            units[-1].operations.append(operation)
        else:
            units.append(_Unit(len(units), operation))
    return units


def _conflicts(units: Sequence[_Unit]) -> list[tuple[int, int]]:
    """The pairs (later, earlier) of units that overlap, one of them a write; or all in turn.

    From left to right over the disk. What goes on to the right of a unit's
    start is compared with it, and nothing else that does not come of it.
    """
    unit: _Unit
    other: _Unit
    pairs: list[tuple[int, int]] = []
    reads: list[_Unit] = []
    writes: list[_Unit] = []
    for unit in sorted(units, key=_by_start):
        start, index = unit.start, unit.index
        writes = [other for other in writes if other.end > start]
        met = list(writes)
        if unit.operations[0].kind == VIRTIO_BLK_T_IN:
            reads.append(unit)
        else:
            reads = [other for other in reads if other.end > start]
            met += reads
            writes.append(unit)
        for other in met:
            pairs.append((max(index, other.index), min(index, other.index)))
        if len(pairs) > MANY * len(units):
            return [(later, later - 1) for later in range(1, len(units))]
    pairs.sort()
    return pairs


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
