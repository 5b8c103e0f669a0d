"""Plans I/O operations for the requests of one drain. Pure.

Executing the operations in the order of the list has the same effect and the
same results as executing the requests in order.
:mod:`pykvm.devices.virtio_blk.core.ordering` decides which operations may run at
the same time, and :mod:`pykvm.devices.virtio_blk.core.merge` which requests share
an operation. A request that is too large for one operation gets several, and
more when the last of these completes. Each range to discard or to make zeros
has an operation; those of one request are planned at once.
"""

from collections.abc import Callable, Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VIRTIO_BLK_T_DISCARD,
)
from pykvm.devices.virtio_blk.core.merge import (
    Limits,
    Runs,
    sequential,
    sorted_batch,
    sorted_window,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.modes import MergePolicy
from pykvm.virtio.chain import ROOM_KEPT

__all__ = ["Limits", "Planner"]

SPARE: Final = 1024
"""The most operations kept for reuse: the number of entries of the largest queue."""

Policy = Callable[[Sequence[Request], Limits], Runs]

_POLICIES: dict[MergePolicy, Policy] = {
    MergePolicy.SEQUENTIAL: sequential,
    MergePolicy.SORTED: sorted_window,
    MergePolicy.SORTED_BATCH: sorted_batch,
}


class Planner:
    """Plans the requests of one queue. Owns the operations, and reuses them.

    ``durable``: each write is on stable storage when it completes. It may change
    between two calls of :meth:`plan`.
    """

    durable: bool
    _limits: Limits
    _runs: Policy | None
    _most_segments: int
    _most_bytes: int
    _most_pieces: int
    _free: list[Operation]

    def __init__(self, policy: MergePolicy, limits: Limits) -> None:
        self.durable = False
        self._limits = limits
        self._runs = _POLICIES.get(policy)
        self._most_segments = limits.segments
        self._most_bytes = limits.bytes
        self._most_pieces = limits.pieces
        self._free = []

    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        """The operations for ``requests``, which are accepted and in the order of the ring.

        Sets the ``pending`` of each request to the number of its operations.
        The caller owns an operation until :meth:`release`.
        """
        made: list[Operation] = []
        if self._runs is None or len(requests) == 1:
            for request in requests:
                self._single(request, made)
            return made
        for run in self._runs(requests, self._limits):
            if len(run) == 1:
                self._single(run[0], made)
            else:
                made.append(self._merged(run))
        return made

    def singly(self, operation: Operation) -> list[Operation]:
        """Operations that execute each member of ``operation``, a merged one, separately."""
        made: list[Operation] = []
        for request in operation.members:
            self._single(request, made)
        assert len(made) == len(operation.members), "merged requests are within the limits"
        return made

    def rest(self, operation: Operation) -> Operation:
        """An operation for the bytes that ``operation`` did not move."""
        made = self._take()
        made.clip(operation, operation.moved, operation.length - operation.moved)
        made.left = operation.left
        return made

    def further(self, operation: Operation) -> list[Operation]:
        """The next operations for the only member of ``operation``, whose ``left`` is not 0.

        They replace ``operation`` among the member's ``pending``.
        """
        request: Request
        (request,) = operation.members
        whole = self._whole(request)
        whole.durable = operation.durable
        made: list[Operation] = []
        request.pending += self._split(whole, request.length - operation.left, made) - 1
        return made

    def release(self, operation: Operation) -> None:
        """Take back an operation to which no reference is left."""
        if operation.last >= ROOM_KEPT:
            operation.forget()
        if len(self._free) < SPARE:
            self._free.append(operation)

    def _take(self) -> Operation:
        made: Operation = self._free.pop() if self._free else Operation()
        made.error = made.moved = made.left = 0
        return made

    def _single(self, request: Request, made: list[Operation]) -> None:
        """Append the operation for ``request``, or those for its first pieces or its ranges."""
        if request.type >= VIRTIO_BLK_T_DISCARD:
            self._ranges(request, made)
            return
        operation = self._whole(request)
        segments = operation.last - operation.first
        if operation.length > self._most_bytes or segments > self._most_segments:
            request.pending = self._split(operation, 0, made)
        else:
            request.pending = 1
            made.append(operation)

    def _whole(self, request: Request) -> Operation:
        """An operation for all of ``request``, which may exceed the limits."""
        operation = self._take()
        operation.members[:] = (request,)
        operation.kind = request.type
        operation.offset = request.sector << SECTOR_SHIFT
        operation.length = request.length
        operation.offsets = request.offsets
        operation.lengths = request.lengths
        operation.first = request.first
        operation.last = request.last
        operation.durable = self.durable
        return operation

    def _ranges(self, request: Request, made: list[Operation]) -> None:
        """Append an operation for each range of a DISCARD or WRITE_ZEROES."""
        ranges = request.ranges
        request.pending = len(ranges) // 3
        for index in range(0, len(ranges), 3):
            operation = self._whole(request)
            operation.offset = ranges[index]
            operation.length = ranges[index + 1]
            operation.unmap = ranges[index + 2] != 0
            made.append(operation)

    def _merged(self, run: Sequence[Request]) -> Operation:
        """One operation for ``run``, neighbours on the disk and within the limits."""
        operation = self._take()
        operation.members[:] = run
        start: Request
        start = run[0]
        operation.kind = start.type
        operation.offset = start.sector << SECTOR_SHIFT
        operation.durable = self.durable
        segments = 0
        for request in run:
            segments += request.last - request.first
        operation.make_room(segments)
        count = length = 0
        for request in run:
            request.pending = 1
            length += request.length
            for index in range(request.first, request.last):
                operation.offsets[count] = request.offsets[index]
                operation.lengths[count] = request.lengths[index]
                count += 1
        operation.length = length
        return operation

    def _split(self, rest: Operation, start: int, made: list[Operation]) -> int:
        """Append operations for the first pieces of ``rest`` from ``start`` on.

        Returns their number. The last one has the remaining bytes in ``left``. Releases ``rest``.
        """
        pieces = 0
        while start < rest.length and pieces < self._most_pieces:
            # Drop the segments before it, or each piece would examine all of them again.
            while start >= (skipped := rest.lengths[rest.first]):
                rest.first += 1
                rest.offset += skipped
                rest.length -= skipped
                start -= skipped
            piece = self._take()
            piece.clip(rest, start, self._fitting(rest, start))
            made.append(piece)
            pieces += 1
            start += piece.length
        made[-1].left = rest.length - start
        self.release(rest)
        return pieces

    def _fitting(self, rest: Operation, start: int) -> int:
        """The bytes of ``rest`` from ``start`` on that fit into one operation.

        Whole sectors, unless the limits are below 512 segments or bytes, as only
        tests set them.
        """
        most = min(self._most_bytes, rest.length - start)
        fitting = -start
        segments = 0
        for index in range(rest.first, rest.last):
            if rest.lengths[index]:  # clip skips empty ones
                fitting += rest.lengths[index]
                segments += 1
            if fitting >= most or segments == self._most_segments:
                break
        fitting = min(fitting, most)
        return fitting - fitting % SECTOR_SIZE if fitting > SECTOR_SIZE else fitting
