"""One queue's requests from the ring to their results: what may start, what is done. Pure.

::

                    add                take                finish
    requests  ──►  planned, ordered  ──►  executing  ──►  answered
                        ▲   ▲                │  │
                        │   └── singly, rest ┘  │ failed, and the policy is to stop
                        │       resume          ▼
                        └────────────────────  held

- A merged operation that fails or comes back short is executed again member
  by member, so that a bad sector fails the request that wants it and no other.
- An operation for one request that comes back short is continued; one that
  moved nothing is at the end of a file that somebody truncated: EIO.
- When the last of the operations for a large request is done, well or not,
  more of them are planned, as long as something of it is left.
- A failed request gets what its policy says. If that is to stop, or if
  :meth:`Schedule.halt` says so, nothing starts any more, what is executing
  is awaited, and everything unanswered is kept. :meth:`Schedule.resume` plans
  all of it anew, in the order of the ring, as if it had just been taken from
  there: each request is executed once more in full, and answered once.

Executing a request again is harmless: reads and writes leave what one
execution leaves, and until a request is answered its driver expects nothing.
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
"""What becomes of a request whose ``error`` is not 0. Called once for each time that it fails."""

ANY_CAPACITY: Final = 1 << 55
"""More sectors than bytes can be counted for."""

_by_sequence = attrgetter("sequence")


class Schedule:
    """The unanswered requests of one queue.

    ``executing`` counts the operations that were started and are not finished,
    and ``halted`` says whether :meth:`take` gives any. ``throttle``, which may
    change at any time, has a say in that too; ``wake_ns`` (time.monotonic_ns)
    is when :meth:`take` is to be called again on its account, or 0.
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
        """``observer`` is told of each step. ``detector`` looks at what is about to start."""
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
        """Plan ``requests``, accepted and in the order of the ring; the operations planned."""
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

        ``start``: :meth:`start` is called with them. If not, it is to be called with
        each before it is executed, and not for those that a halt prevents.
        """
        self.wake_ns = 0
        ready = self._ready
        if self.halted or not ready:
            return []
        throttle = self.throttle  # looked at once: another thread may set it meanwhile
        if throttle is None:
            self._ready = []
        else:
            now = time.monotonic_ns()
            ready, self._ready, self.wake_ns = throttle.admit(id(self), ready, now)
        if start:
            self.start(ready)
        return ready

    def start(self, operations: list[Operation]) -> None:
        """``operations``, which were taken, are about to be executed."""
        self.executing += len(operations)
        if self._detector is not None:
            self._detector.look(operations)
        if self._observer is not None:
            self._observer.submitted(operations)

    def finish(self, operation: Operation) -> Sequence[Request]:
        """``operation``, once taken, was executed: the requests that are to be answered.

        Their ``status`` is the answer, and ``error`` is 0 or the errno that it comes from.
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
            answered = self._answered(operation.members)
        elif len(operation.members) > 1:
            self._again(operation, self._planner.singly(operation))
        elif short and operation.moved:
            self._again(operation, [self._planner.rest(operation)])
        else:
            (request,) = operation.members
            if failed or short:
                request.error = request.error or failed or errno.EIO
            if operation.left:
                self._again(operation, self._planner.further(operation))
            else:
                self._unfinished.remove(operation)
                answered = self._answered(operation.members)
                # After the decision: if it is to stop, these are part of what is kept.
                self._start_followers(operation)
        if self._observer is not None:
            self._observer.answered(answered, operation.finished_ns)
        self._planner.release(operation)
        return answered

    def abandon(self, operation: Operation) -> None:
        """``operation``, once taken, is over, and nobody wants to know how. Before :meth:`drop`."""
        self.executing -= 1

    def halt(self) -> None:
        """Let nothing start any more."""
        if self._observer is not None and not self.halted:
            self._observer.halted()
        self.halted = True

    def resume(self, capacity: U64 = ANY_CAPACITY) -> list[Request]:
        """Undo :meth:`halt`; nothing may be executing. What was kept is planned again.

        But for requests beyond ``capacity`` (sectors): the disk has shrunk,
        and these are to be answered, with VIRTIO_BLK_S_IOERR.
        """
        request: Request
        assert not self.executing, "what is executing is awaited first"
        unanswered = dict.fromkeys(self._held)
        for operation in self._unfinished:
            unanswered.update(dict.fromkeys(operation.members))
        if self._observer is not None and self.halted:
            self._observer.resumed(len(unanswered))
        self.halted = False
        self.drop()
        inside = []
        beyond = []
        for request in sorted(unanswered, key=_by_sequence):
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

    def drop(self) -> None:
        """Forget everything. Nothing may be executing, unless a bug left it so."""
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

    def _again(self, operation: Operation, successors: Sequence[Operation]) -> None:
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

    def _answered(self, requests: Sequence[Request]) -> list[Request]:
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
