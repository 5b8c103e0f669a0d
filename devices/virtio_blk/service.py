"""Serves one queue: takes requests off the ring, has them executed, answers them.

::

    ring → parser → planner → order → engine → completion → ring
                 ↘ refused, GET_ID ────────────↗

No thread lives here: whoever calls :meth:`QueueService.drain` after a kick and
:meth:`QueueService.complete` after a notification of the engine runs the
device, be it a thread or a test.
"""

import select
import time
from collections.abc import Callable, Sequence

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.engine import Engine
from pykvm.devices.virtio_blk.plan import Operation, Planner, order
from pykvm.devices.virtio_blk.request import Request, RequestParser
from pykvm.devices.virtio_blk.stats import Stats
from pykvm.memory.ram import Ram
from pykvm.virtio.split import SplitQueue


class QueueService:
    """One queue at work. One thread at a time calls it.

    ``kick`` is the queue's eventfd and ``engine`` what executes its
    operations; both belong to somebody else.
    """

    def __init__(
        self,
        queue: SplitQueue,
        kick: int,
        ram: Ram,
        parser: RequestParser,
        engine: Engine,
        stats: Stats,
        durable: bool,
        interrupt: Callable[[int], None],
    ) -> None:
        """``durable``: each write completes on stable storage (the driver knows no flush)."""
        self.queue = queue
        self.kick = kick
        self.engine = engine
        self._stopping = False
        self._bytes = ram.bytes
        self._parser = parser
        self._stats = stats
        self._interrupt = interrupt
        self._requests = tuple(Request(head) for head in range(queue.size))
        self._planner = Planner(self._requests, durable)
        self._executing = 0  # operations that the engine has
        # For engines that are not ordered: planned and not done, executing or not.
        self._unfinished: dict[Operation, None] = {}

    def drain(self) -> bool:
        """Serve what is available, at most the queue's size. True: call again, more is waiting.

        When ``queue.error`` is set afterwards, the ring is beyond use.
        """
        queue = self.queue
        queue.disable_notifications()
        queue.begin_drain()
        pop, chains, requests, parse = queue.pop, queue.chains, self._requests, self._parser.parse
        now = time.monotonic_ns()
        accepted: list[Request] = []
        while (head := pop()) >= 0:
            request = requests[head]
            if parse(chains[head], request):
                request.started_ns = now
                accepted.append(request)
            else:
                self._answer(request)
        if accepted:
            self._start(self._planner.plan(accepted))
        if queue.publish():
            self._interrupt(queue.index)
        return queue.enable_notifications()

    def complete(self) -> None:
        """Answer what the engine has done."""
        self._collect()
        if not self._stopping and self.queue.publish():
            self._interrupt(self.queue.index)

    def stop(self) -> None:
        """From now on start nothing and let every result go nowhere. Any thread."""
        self._stopping = True
        self.engine.stop()

    def quiesce(self) -> None:
        """Stop, wait until the engine executes nothing, and forget the rest. For reset."""
        self.stop()
        notified = select.poll()
        if self.engine.notifier >= 0:
            notified.register(self.engine.notifier, select.POLLIN)
        self._collect()
        while self._executing:
            notified.poll()
            self._collect()
        self._unfinished.clear()

    def _start(self, operations: Sequence[Operation]) -> None:
        if self.engine.ordered:
            self._submit(operations)
        else:
            ready = order(operations, self._unfinished)
            self._unfinished.update(dict.fromkeys(operations))
            self._submit(ready)
        if self.engine.notifier < 0:
            self._collect()

    def _submit(self, operations: Sequence[Operation]) -> None:
        self.engine.submit(operations)
        self._executing += len(operations)

    def _collect(self) -> None:
        ordered = self.engine.ordered
        done = self.engine.completions()
        stopping = self._stopping  # after that: what was cancelled is never answered
        self._executing -= len(done)
        for operation in done:
            if stopping:
                continue
            self._finish(operation)
            if not ordered:
                del self._unfinished[operation]
                self._release(operation)

    def _release(self, operation: Operation) -> None:
        """Start what waited for ``operation`` alone."""
        ready = []
        for follower in operation.followers:
            follower.waits -= 1
            if not follower.waits:
                ready.append(follower)
        operation.followers.clear()
        if ready:
            self._submit(ready)

    def _finish(self, operation: Operation) -> None:
        error = operation.error
        kind = operation.kind
        stats = self._stats
        finished = operation.finished_ns
        for request in operation.members:
            if error:
                request.status = VIRTIO_BLK_S_IOERR
                request.used_length = 1
                stats.failed(kind)
            else:
                length = request.length
                request.status = VIRTIO_BLK_S_OK
                request.used_length = length + 1 if kind == VIRTIO_BLK_T_IN else 1
                stats.done(kind, length, finished - request.started_ns)
            self._bytes[request.status_offset] = request.status
            self.queue.push(request.head, request.used_length)

    def _answer(self, request: Request) -> None:
        """Complete a request that the parser answered."""
        if request.status != VIRTIO_BLK_S_OK:
            self._stats.invalid(request.type)
        elif request.type in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT):
            self._stats.done(request.type, 0, 0)
        if request.status_offset >= 0:
            self._bytes[request.status_offset] = request.status
        self.queue.push(request.head, request.used_length)
