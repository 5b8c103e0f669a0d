"""Turns a disk's events into the plain fields of a trace (:mod:`pykvm.trace`).

Nothing calls this module in a run without a trace.
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
    """Sends the events of the disk ``name`` to ``sink``. Any thread."""

    def __init__(self, sink: Sink, name: str) -> None:
        self._sink = sink
        self._name = name

    def queue(self, index: int) -> "QueueTrace":
        """The tracer of queue ``index``, for one activation."""
        return QueueTrace(self._sink, self._name, index)

    def begun(self, path: str, sectors: int, readonly: bool) -> None:
        """The disk exists now."""
        self._record(events.DISK, **name_fields("path", path), sectors=sectors, readonly=readonly)

    def negotiated(self, features: int) -> None:
        """The driver accepted ``features``."""
        names = [name for name, mask in _FEATURES.items() if features & mask]
        self._record(events.NEGOTIATE, features=hex(features), names=names)

    def activated(self, sizes: Sequence[int]) -> None:
        """The device serves queues of these sizes, 0 for those that are not used."""
        self._record(events.ACTIVATE, queue_sizes=list(sizes))

    def reset(self) -> None:
        """The device was reset; requests without an answer never get one."""
        self._record(events.RESET)

    def cache(self, writeback: bool) -> None:
        """The driver switched its write cache."""
        self._record(events.CACHE, writeback=writeback)

    def resized(self, sectors: int) -> None:
        """The disk has a new size, in sectors."""
        self._record(events.RESIZE, sectors=sectors)

    def broken(self, reason: str) -> None:
        """The device serves nothing until a reset."""
        self._record(events.BROKEN, reason=reason)

    def _record(self, event: str, **fields: Any) -> None:
        self._sink.record(event, time.monotonic_ns(), self._name, events.DEVICE, fields)


class QueueTrace:
    """Sends the events of one queue to ``sink``, in the thread that serves the queue.

    Requests have the schedule's numbers. Operations are numbered in the order of
    their submission. See also :class:`~pykvm.devices.virtio_blk.core.observer.Observer`.
    """

    def __init__(self, sink: Sink, disk: str, queue: int) -> None:
        self._sink = sink
        self._disk = disk
        self._queue = queue
        self._wanted = frozenset(name for name in events.EVENTS if sink.wants(name))
        self._operations = 0
        # By operation in flight: its number, and the time of its submission.
        self._executing: dict[Operation, tuple[int, int]] = {}

    def added(self, requests: Sequence[Request], operations: Sequence[Operation]) -> None:
        """``requests`` came off the ring, and ``operations`` were planned for them."""
        if events.REQUEST in self._wanted:
            for request in requests:
                fields = {"request": request.sequence, "head": request.head, **_extent(request)}
                self._record(events.REQUEST, request.started_ns, fields)
        if events.MERGE in self._wanted:
            for operation in operations:
                if len(operation.members) > 1:
                    self._record(events.MERGE, time.monotonic_ns(), _executed(operation))

    def refused(self, request: Request, now_ns: int) -> None:
        """``request`` is answered without execution: it needs none, or is invalid."""
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
        """The engine has completed ``operation``; the schedule has not evaluated it yet."""
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
        """``successors`` retry ``operation`` or continue it, for its members."""
        short = not operation.error and 0 < operation.moved < operation.length
        if len(operation.members) == 1 and not short:
            return  # more pieces of a large request are no second attempt
        fields = {**_executed(operation), "operations": len(successors)}
        self._record(events.RETRY, operation.finished_ns, fields)

    def failed(self, request: Request, action: ErrorAction) -> None:
        """The host could not execute ``request``; its policy chose ``action``."""
        fields = {
            "request": request.sequence,
            **_extent(request),
            **_error(request.error),
            "action": action.value,
        }
        self._record(events.ERROR, time.monotonic_ns(), fields)

    def answered(self, requests: Sequence[Request], finished_ns: int) -> None:
        """The last operations of ``requests`` completed at ``finished_ns``."""
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
        """The queue starts nothing any more."""
        self._record(events.STOP, time.monotonic_ns(), {})

    def resumed(self, requests: int) -> None:
        """The queue goes on, with this number of ``requests`` that the halt had kept."""
        self._record(events.RESUME, time.monotonic_ns(), {"requests": requests})

    def _record(self, event: str, ns: int, fields: Fields) -> None:
        self._sink.record(event, ns, self._disk, self._queue, fields)


def _kind(number: int) -> str:
    return KINDS.get(number) or f"type {number}"


def _extent(request: Request) -> dict[str, Any]:
    return {"kind": _kind(request.type), "sector": request.sector, "length": request.length}


def _executed(operation: Operation) -> dict[str, Any]:
    """The fields of ``operation``; its first byte is in ``sector``."""
    return {
        "kind": _kind(operation.kind),
        "sector": operation.offset >> SECTOR_SHIFT,
        "length": operation.length,
        "requests": [request.sequence for request in operation.members],
    }


def _error(number: int) -> dict[str, Any]:
    return {"errno": number, "error": errno.errorcode.get(number, str(number))}
