"""What a disk tells a trace (:mod:`pykvm.trace`), from its own objects to plain fields.

Nobody calls any of this unless somebody wants a trace.
"""

import errno
import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from pykvm.devices.virtio_blk import constants
from pykvm.devices.virtio_blk.constants import (
    OPERATION_NAMES,
    SECTOR_SHIFT,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_GET_LIFETIME,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import TYPE_UNREADABLE, Request
from pykvm.devices.virtio_blk.modes import ErrorAction
from pykvm.names import name_fields
from pykvm.trace import events
from pykvm.trace.events import Fields, Sink
from pykvm.virtio import constants as virtio

KINDS: Final = MappingProxyType(
    {
        **OPERATION_NAMES,
        VIRTIO_BLK_T_GET_ID: "get_id",
        VIRTIO_BLK_T_GET_LIFETIME: "get_lifetime",
        TYPE_UNREADABLE: "unreadable",
    }
)
_WRITES: Final = (VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES)
_STATUSES: Final = MappingProxyType(
    {
        VIRTIO_BLK_S_OK: "ok",
        VIRTIO_BLK_S_IOERR: "ioerr",
        VIRTIO_BLK_S_UNSUPP: "unsupp",
    }
)
_FEATURES: Final = MappingProxyType(
    {
        name: mask
        for prefix, module in (("VIRTIO_BLK_F_", constants), ("VIRTIO_F_", virtio))
        for name, mask in vars(module).items()
        if name.startswith(prefix)
    }
)


class DiskTrace:
    """Tells ``sink`` what happens to the disk ``name``. Any thread."""

    def __init__(self, sink: Sink, name: str) -> None:
        self._sink = sink
        self._name = name

    def queue(self, index: int) -> "QueueTrace":
        """What tells of queue ``index``, for one activation."""
        return QueueTrace(self._sink, self._name, index)

    def begun(self, path: str, sectors: int, readonly: bool) -> None:
        """There is a disk."""
        self._record(events.DISK, **name_fields("path", path), sectors=sectors, readonly=readonly)

    def negotiated(self, features: int) -> None:
        """The driver accepted ``features``."""
        names = [name for name, mask in _FEATURES.items() if features & mask]
        self._record(events.NEGOTIATE, features=hex(features), names=names)

    def activated(self, sizes: Sequence[int]) -> None:
        """The device serves queues of these sizes, 0 for those that are not used."""
        self._record(events.ACTIVATE, queue_sizes=list(sizes))

    def reset(self) -> None:
        """It does not any more; what was not answered never is."""
        self._record(events.RESET)

    def cache(self, writeback: bool) -> None:
        """The driver switched its write cache."""
        self._record(events.CACHE, writeback=writeback)

    def resized(self, sectors: int) -> None:
        """It has another size from now on."""
        self._record(events.RESIZE, sectors=sectors)

    def broken(self, reason: str) -> None:
        """Nothing is served until a reset."""
        self._record(events.BROKEN, reason=reason)

    def _record(self, event: str, **fields: Any) -> None:
        self._sink.record(event, time.monotonic_ns(), self._name, events.DEVICE, fields)


class QueueTrace:
    """Tells ``sink`` what happens in one queue. In the thread that serves it.

    Requests have the numbers that the schedule gives them, operations those
    of their submission.
    """

    def __init__(self, sink: Sink, disk: str, queue: int) -> None:
        self._sink = sink
        self._disk = disk
        self._queue = queue
        self._wanted = frozenset(name for name in events.EVENTS if sink.wants(name))
        self._operations = 0
        # Executing: its number, and when it was submitted.
        self._executing: dict[Operation, tuple[int, int]] = {}

    def added(self, requests: Sequence[Request], operations: Sequence[Operation]) -> None:
        """``requests`` were taken off the ring, and made ``operations``."""
        if events.REQUEST in self._wanted:
            for request in requests:
                fields = {"request": request.sequence, "head": request.head, **_extent(request)}
                self._record(events.REQUEST, request.started_ns, fields)
        if events.MERGE in self._wanted:
            for operation in operations:
                if len(operation.members) > 1:
                    self._record(events.MERGE, time.monotonic_ns(), _executed(operation))

    def refused(self, request: Request, now_ns: int) -> None:
        """``request`` needs no execution, or must not have any."""
        event = events.ANSWER if request.status == VIRTIO_BLK_S_OK else events.REFUSE
        kind = _kind(request.type)
        status = _STATUSES[request.status]
        self._record(event, now_ns, {"head": request.head, "kind": kind, "status": status})

    def submitted(self, operations: Sequence[Operation]) -> None:
        """The engine is about to get ``operations``."""
        now = time.monotonic_ns()
        for operation in operations:
            number = self._operations
            self._operations += 1
            self._executing[operation] = (number, now)
            if events.SUBMIT in self._wanted:
                fields = {
                    "operation": number,
                    **_executed(operation),
                    "segments": operation.last - operation.first,
                    "durable": operation.durable and operation.kind in _WRITES,
                }
                self._record(events.SUBMIT, now, fields)

    def completed(self, operation: Operation) -> None:
        """The engine is done with ``operation``; nothing has come of it yet."""
        number, submitted = self._executing.pop(operation)
        if events.COMPLETE in self._wanted:
            fields = {
                "operation": number,
                **_executed(operation),
                "errno": operation.error,
                "moved": operation.moved,
                "took_ns": operation.finished_ns - submitted,
            }
            self._record(events.COMPLETE, operation.finished_ns, fields)

    def succeeded(self, operation: Operation, successors: Sequence[Operation]) -> None:
        """``successors`` are executed in place of ``operation``, or after it, for its members."""
        short = not operation.error and 0 < operation.moved < operation.length
        if len(operation.members) == 1 and not short:
            return  # the next pieces of a large request are no second attempt
        fields = {**_executed(operation), "operations": len(successors)}
        self._record(events.RETRY, operation.finished_ns, fields)

    def failed(self, request: Request, action: ErrorAction) -> None:
        """The host could not carry out ``request``; ``action`` is what its policy says."""
        fields = {
            "request": request.sequence,
            **_extent(request),
            **_error(request.error),
            "action": action.value,
        }
        self._record(events.ERROR, time.monotonic_ns(), fields)

    def answered(self, requests: Sequence[Request], finished_ns: int) -> None:
        """The last operations of ``requests`` were done at ``finished_ns``."""
        if events.DONE in self._wanted:
            for request in requests:
                fields = {
                    "request": request.sequence,
                    **_extent(request),
                    "status": _STATUSES[request.status],
                    "errno": request.error,
                    "took_ns": finished_ns - request.started_ns,
                }
                self._record(events.DONE, finished_ns, fields)

    def halted(self) -> None:
        """Nothing starts any more."""
        self._record(events.STOP, time.monotonic_ns(), {})

    def resumed(self, requests: int) -> None:
        """The queue goes on, with ``requests`` that were kept."""
        self._record(events.RESUME, time.monotonic_ns(), {"requests": requests})

    def _record(self, event: str, ns: int, fields: Fields) -> None:
        self._sink.record(event, ns, self._disk, self._queue, fields)


def _kind(number: int) -> str:
    return KINDS.get(number) or f"type {number}"


def _extent(request: Request) -> dict[str, Any]:
    return {"kind": _kind(request.type), "sector": request.sector, "length": request.length}


def _executed(operation: Operation) -> dict[str, Any]:
    """What ``operation`` does, and for which requests; ``sector`` has its first byte."""
    return {
        "kind": _kind(operation.kind),
        "sector": operation.offset >> SECTOR_SHIFT,
        "length": operation.length,
        "requests": [request.sequence for request in operation.members],
    }


def _error(number: int) -> dict[str, Any]:
    return {"errno": number, "error": errno.errorcode.get(number, str(number))}
