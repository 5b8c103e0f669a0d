"""Accepted requests as the planner gets them, made without a ring."""

from collections.abc import Sequence

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.modes import MergePolicy
from pykvm.hot.words import longs

AREA = 1 << 20
IN, OUT, FLUSH = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH


def request_of(head: int, kind: int, sector: int = 0, *lengths: int) -> Request:
    """A request with a segment for each of ``lengths`` (bytes), at most 1 MiB in all."""
    request = Request(head)
    request.type = kind
    request.sector = sector
    request.length = sum(lengths)
    request.lengths = longs(lengths)
    request.offsets = longs(head * AREA + sum(lengths[:index]) for index in range(len(lengths)))
    request.last = len(lengths)
    return request


def requests_of(script: Sequence[tuple[int, int, int]]) -> list[Request]:
    """Requests from (type, sector, sectors); each has one segment, a flush none."""
    return [
        request_of(head, kind) if kind == FLUSH else request_of(head, kind, sector, count * 512)
        for head, (kind, sector, count) in enumerate(script)
    ]


def planned(
    script: Sequence[tuple[int, int, int]],
    policy: MergePolicy = MergePolicy.OFF,
    limits: Limits | None = None,
) -> list[Operation]:
    """The plan for :func:`requests_of` ``script``."""
    return Planner(policy, limits or Limits()).plan(requests_of(script))


def heads(operations: Sequence[Operation]) -> list[list[int]]:
    """The heads of each operation's members: the indices of the script."""
    return [[request.head for request in operation.members] for operation in operations]
