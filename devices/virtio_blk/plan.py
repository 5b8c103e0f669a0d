"""From the requests of one drain to I/O operations. Pure.

Executing the operations one after another, in the order of the list, leaves
the same bytes and the same results as executing the requests one after
another; :mod:`pykvm.devices.virtio_blk.order` says which of them may run side
by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.devices.virtio_blk.constants import SECTOR_SHIFT
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.devices.virtio_blk.options import MergePolicy
from pykvm.devices.virtio_blk.request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one operation holds: members, segments, and bytes.

    1024 segments are what preadv and pwritev take on Linux (IOV_MAX), and
    0x7ffff000 bytes what they move at once.
    """

    requests: int = 32
    segments: int = 1024
    bytes: int = 0x7FFFF000


class Planner:
    """Plans the requests of one queue. Owns the operations, and uses them again.

    ``durable``: each write is on stable storage when it completes; may change
    between two plans.
    """

    def __init__(self, policy: MergePolicy, limits: Limits) -> None:
        self.durable = False
        self._policy = policy
        self._limits = limits
        self._free: list[Operation] = []

    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        """The operations for ``requests``, which are accepted and in the order of the ring.

        Sets the ``pending`` of each request to the number of its operations.
        An operation belongs to the caller until :meth:`release`.
        """
        return [self._single(request) for request in requests]

    def singly(self, operation: Operation) -> list[Operation]:
        """Operations that execute each member of ``operation`` alone."""
        return [self._single(request) for request in operation.members]

    def rest(self, operation: Operation) -> Operation:
        """The operation that executes what ``operation`` did not move."""
        made = self._take()
        made.clip(operation, operation.moved, operation.length - operation.moved)
        return made

    def release(self, operation: Operation) -> None:
        """Take back an operation that nobody refers to any more."""
        self._free.append(operation)

    def _take(self) -> Operation:
        made = self._free.pop() if self._free else Operation()
        made.error = made.moved = 0
        return made

    def _single(self, request: Request) -> Operation:
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
        request.pending = 1
        return operation
