"""Leads the requests of one queue from the ring to their answers. Pure.

::

                    add                take                finish
    requests  ──►  planned, ordered  ──►  executing  ──►  answered
                        ▲   ▲                │  │
                        │   └── singly, rest ┘  │ failed, and the policy is to stop
                        │       resume          ▼
                        └────────────────────  held

- If a merged operation fails or is short (it moved fewer bytes than its length),
  each member is executed again separately. So a bad sector fails only the
  requests that need it.
- If an operation for one request is short, another operation continues it. If it
  moved nothing, the file has been truncated: EIO.
- When the last operation of a large request has completed, with or without an
  error, more are planned until none of the request is left.
- The error policy decides about a failed request. If it stops the guest, or if
  the device calls :meth:`Schedule.halt`, nothing starts any more, and all
  requests without an answer are kept. Operations in flight still complete.
  :meth:`Schedule.resume` plans the kept requests again, in the order of the ring:
  each is executed once more in full, and answered once.

A second execution of a request is harmless. It leaves the same bytes as the
first, and a driver expects nothing of a request before its answer.
"""

import errno
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.ordering import Unfinished, extent, order
from pykvm.devices.virtio_blk.core.planner import Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.modes import ErrorAction
from pykvm.hot.words import U64

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.core.observer import Observer
    from pykvm.devices.virtio_blk.core.throttle import Throttle
    from pykvm.devices.virtio_blk.core.zero_detection import ZeroDetector

Decide = Callable[[Request], ErrorAction]
"""Decides about a request whose ``error`` is not 0. Called once for each failed execution."""

ANY_CAPACITY: Final = 1 << 55
"""More sectors than a disk can have."""

_by_sequence = attrgetter("sequence")


class Schedule:
    """The unanswered requests of one queue.

    ``executing`` counts the operations in flight: started and not finished.
    While ``halted``, :meth:`take` gives none. ``throttle`` may delay operations;
    any thread may set it at any time. ``wake_ns`` (time.monotonic_ns) is the time
    for the next :meth:`take` if it has delayed some, or 0.
    """

    executing: int
    halted: bool
    throttle: "Throttle | None"
    wake_ns: int
    _planner: Planner
    _decide: Decide
    _sequence: int
    _ready: list[Operation]
    _unfinished: Unfinished
    _held: list[Request]
    _observer: "Observer | None"
    _detector: "ZeroDetector | None"

    def __init__(
        self,
        planner: Planner,
        decide: Decide,
        observer: "Observer | None" = None,
        detector: "ZeroDetector | None" = None,
    ) -> None:
        """``observer`` learns of each step; ``detector`` examines operations about to start."""
        self.executing = 0
        self.halted = False
        self.throttle = None
        self.wake_ns = 0
        self._planner = planner
        self._decide = decide
        self._sequence = 0
        self._ready = []
        self._unfinished = Unfinished()
        self._held = []
        self._observer = observer
        self._detector = detector

    def add(self, requests: Sequence[Request]) -> list[Operation]:
        """Plan ``requests``, accepted and in the order of the ring; returns their operations."""
        sequence = self._sequence
        for request in requests:
            request.sequence = sequence
            request.charged = False
            sequence += 1
        self._sequence = sequence
        operations = self._plan(requests)
        if self._observer is not None:
            self._observer.added(requests, operations)
        return operations

    def take(self, start: bool = True) -> list[Operation]:
        """The operations that may start now, each given once; none while halted.

        ``start``: calls :meth:`start` with them. Otherwise the caller calls it with each
        operation before its execution, unless a halt prevents that.
        """
        self.wake_ns = 0
        ready = self._ready
        if self.halted or not ready:
            return []
        throttle = self.throttle  # read once: another thread may set it meanwhile
        if throttle is None:
            self._ready = []
        else:
            now = time.monotonic_ns()
            ready, self._ready, self.wake_ns = throttle.admit(id(self), ready, now)
        if start:
            self.start(ready)
        return ready

    def start(self, operations: list[Operation]) -> None:
        """``operations``, which :meth:`take` gave, are about to be executed."""
        self.executing += len(operations)
        if self._detector is not None:
            self._detector.convert(operations)
        if self._observer is not None:
            self._observer.submitted(operations)

    def finish(self, operation: Operation) -> Sequence[Request]:
        """The engine has executed ``operation``; returns the requests to answer.

        Their ``status`` is the answer; ``error`` is 0 or the errno behind it.
        """
        self.executing -= 1
        if self._observer is not None:
            self._observer.completed(operation)
        failed = operation.error
        short = not failed and operation.moved < operation.length
        answered: Sequence[Request] = ()
        if not failed and not short and not operation.left:
            self._unfinished.remove(operation)
            self._start_followers(operation)
            answered = self._settle(operation.members)
        elif len(operation.members) > 1:
            self._replace(operation, self._planner.singly(operation))
        elif short and operation.moved:
            self._replace(operation, [self._planner.rest(operation)])
        else:
            (request,) = operation.members
            if failed or short:
                request.error = request.error or failed or errno.EIO
            if operation.left:
                self._replace(operation, self._planner.further(operation))
            else:
                self._unfinished.remove(operation)
                answered = self._settle(operation.members)
                # After the decision, because a halt keeps the followers, too.
                self._start_followers(operation)
        if self._observer is not None:
            self._observer.answered(answered, operation.finished_ns)
        self._planner.release(operation)
        return answered

    def abandon(self, operation: Operation) -> None:
        """``operation`` has ended and its result does not matter. Called before :meth:`drop`."""
        self.executing -= 1

    def halt(self) -> None:
        """Start nothing any more, until :meth:`resume`."""
        if self._observer is not None and not self.halted:
            self._observer.halted()
        self.halted = True
        self.wake_ns = 0  # a resume asks the rate limits again

    def resume(self, capacity: U64 = ANY_CAPACITY) -> list[Request]:
        """Undo :meth:`halt` and plan the kept requests again. Nothing may be executing.

        Returns the requests beyond ``capacity`` (sectors), because the disk has
        shrunk. The caller answers them with VIRTIO_BLK_S_IOERR.
        """
        request: Request
        unanswered = self.unanswered()
        if self._observer is not None and self.halted:
            self._observer.resumed(len(unanswered))
        self.halted = False
        self.drop()
        inside = []
        beyond = []
        for request in unanswered:
            request.error = 0
            if extent(request)[1] >> SECTOR_SHIFT <= capacity:
                inside.append(request)
                continue
            request.error = errno.EIO
            request.status = VIRTIO_BLK_S_IOERR
            beyond.append(request)
        if inside:
            self._plan(inside)
        if self._observer is not None:
            self._observer.answered(beyond, time.monotonic_ns())
        return beyond

    def unanswered(self) -> list[Request]:
        """All requests, in the order of the ring. Nothing may be executing."""
        assert not self.executing, "the caller waits for executing operations first"
        unanswered = dict.fromkeys(self._held)
        for operation in self._unfinished:
            unanswered.update(dict.fromkeys(operation.members))
        return sorted(unanswered, key=_by_sequence)

    def keep(self, requests: Sequence[Request], observer: "Observer | None") -> None:
        """Halt, and keep ``requests`` of a snapshot, in the order of the ring, for :meth:`resume`.

        Drop all others. ``observer`` learns of each step from now on.
        """
        request: Request
        self.drop()
        self._observer = observer
        for request in requests:
            request.sequence = self._sequence
            self._sequence += 1
        self._held[:] = requests
        if self._observer is not None:
            self._observer.added(requests, ())
        self.halt()

    def drop(self) -> None:
        """Drop all requests. Nothing may be executing, except after a bug."""
        self.executing = 0
        for operation in self._unfinished:
            self._planner.release(operation)
        self._unfinished.clear()
        self._ready.clear()
        self._held.clear()

    def _plan(self, requests: Sequence[Request]) -> list[Operation]:
        operations = self._planner.plan(requests)
        self._ready += order(operations, self._unfinished)
        return operations

    def _replace(self, operation: Operation, successors: Sequence[Operation]) -> None:
        """Have ``successors`` executed in place of ``operation``."""
        if self._observer is not None:
            self._observer.succeeded(operation, successors)
        self._unfinished.replace(operation, successors)
        self._ready += successors

    def _start_followers(self, operation: Operation) -> None:
        follower: Operation
        for follower in operation.followers:
            follower.waits -= 1
            if follower.waits:
                continue
            if follower.members:
                self._ready.append(follower)
            else:
                self._start_followers(follower)
        operation.followers.clear()

    def _settle(self, requests: Sequence[Request]) -> list[Request]:
        """Count down the operations of ``requests``; returns those that have their answer now."""
        answered = []
        for request in requests:
            request.pending -= 1
            if request.pending:
                continue
            request.status = VIRTIO_BLK_S_OK
            if request.error:
                action = self._decide(request)
                if self._observer is not None:
                    self._observer.failed(request, action)
                if action is ErrorAction.STOP:
                    self.halt()
                    self._held.append(request)
                    continue
                if action is ErrorAction.REPORT:
                    request.status = VIRTIO_BLK_S_IOERR
            answered.append(request)
        return answered
