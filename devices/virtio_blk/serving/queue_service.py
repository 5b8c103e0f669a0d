"""Serves one queue: takes requests off the ring, submits their operations, answers them.

::

    ring → parser → schedule → engine → schedule → ring
                 ↘ refused, GET_ID ────────────↗

No thread lives here. A thread or a test runs the device: it calls
:meth:`QueueService.drain` after a notification of the driver, and
:meth:`QueueService.complete` after a notification of the engine.
"""

import select
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.parser import RequestParser
from pykvm.devices.virtio_blk.core.planner import Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.core.scheduler import Decide, Schedule
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.devices.virtio_blk.serving.answers import Answers
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram
from pykvm.virtio.chain import DescriptorChain
from pykvm.virtio.queue import Virtqueue

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.core.throttle import Throttle
    from pykvm.devices.virtio_blk.core.zero_detection import ZeroDetector
    from pykvm.devices.virtio_blk.engines.base import Engine
    from pykvm.devices.virtio_blk.observe.tracing import QueueTrace
    from pykvm.devices.virtio_blk.serving.recorder import Recorder

MOST_READS: Final = 16
"""The most quick reads that an immediate engine gets at once. One at a time costs half more."""
QUICK_NS: Final = 100_000
"""Reads are quick if all of a submission together took less than this."""
HELD_NS: Final = 20_000
"""While a batch executes one by one, the driver gets results at intervals of this time. So the
driver works at the same time as the device."""


class QueueService:
    """One queue at work. One thread at a time calls it.

    ``kick`` is the queue's eventfd, which belongs to the transport. ``engine``
    executes the queue's operations, and belongs to the service. ``recorder``
    records requests; it changes only while the service is halted. A halted
    service, be it by ``decide`` or by :meth:`halt`, leaves the ring alone and
    starts nothing; it still answers the operations in flight, until
    :attr:`idle`. Its owner, IoThreadGroup, is the only one to :meth:`close` it.
    """

    queue: Virtqueue
    kick: int
    engine: "Engine"
    recorder: "Recorder | None"
    _stopping: bool
    _halting: bool
    _singly: bool
    _reads_at_once: int
    _ram: Ram
    _parser: RequestParser
    _planner: Planner
    _stats: Stats
    _durable: Callable[[], bool]
    _interrupt: Callable[[int], None]
    _answers: Answers
    _requests: tuple[Request, ...]
    _schedule: Schedule
    _trace: "QueueTrace | None"

    def __init__(
        self,
        queue: Virtqueue,
        kick: int,
        ram: Ram,
        parser: RequestParser,
        planner: Planner,
        engine: "Engine",
        stats: Stats,
        durable: Callable[[], bool],
        decide: Decide,
        interrupt: Callable[[int], None],
        trace: "QueueTrace | None" = None,
        detector: "ZeroDetector | None" = None,
    ) -> None:
        """``durable()``: True if a write completes only on stable storage; asked once a drain.

        ``trace`` records each step. ``detector`` finds writes of zeros.
        """
        self.queue = queue
        self.kick = kick
        self.engine = engine
        self.recorder = None
        self._stopping = False
        self._halting = False
        self._singly = engine.immediate
        self._reads_at_once = 1
        self._ram = ram
        self._parser = parser
        self._planner = planner
        self._stats = stats
        self._durable = durable
        self._interrupt = interrupt
        self._answers = Answers(queue, ram, stats)
        self._requests = tuple(Request(head) for head in range(queue.size))
        self._schedule = Schedule(planner, decide, trace, detector)
        self._trace = trace

    @property
    def halted(self) -> bool:
        """True if no request is taken off the ring, and no operation starts."""
        return self._schedule.halted

    @property
    def idle(self) -> bool:
        """True if no operation is in flight."""
        return not self._schedule.executing

    @property
    def throttle(self) -> "Throttle | None":
        """The rate limits. Any thread may set them; the serving thread then calls complete()."""
        return self._schedule.throttle

    @throttle.setter
    def throttle(self, throttle: "Throttle | None") -> None:
        self._schedule.throttle = throttle

    def record(self, recorder: "Recorder | None") -> None:
        """Record all requests without an answer in ``recorder``, or no longer. It is idle."""
        self.recorder = self._answers.recorder = recorder
        if recorder is not None:
            for request in self.unanswered():
                recorder.began(self.queue, request, self._ram)

    @property
    def wake_ns(self) -> int:
        """The time of the next :meth:`complete` for the rate limits (time.monotonic_ns), or 0."""
        return self._schedule.wake_ns

    def drain(self) -> bool:
        """:meth:`serve`, then :meth:`rest`. True: call again, more is waiting."""
        return self.serve() and self.rest()

    def serve(self) -> bool:
        """Serve the available requests, at most the queue's size. Ask for no notification.

        False if the service is halted or stopping: the ring must be left alone.
        If ``queue.error`` is set afterwards, the ring is broken.
        """
        if self._schedule.halted:
            return False
        queue = self.queue
        queue.disable_notifications()
        queue.begin_drain()
        now = time.monotonic_ns()
        request: Request
        chain: DescriptorChain
        accepted: list[Request] = []
        while True:
            head = queue.pop()
            if head < 0:
                break
            request = self._requests[head]
            chain = queue.chains[head]
            if self._parser.parse(chain, request):
                request.started_ns = now
                accepted.append(request)
                if self.recorder is not None:
                    self.recorder.began(queue, request, self._ram)
            else:
                if self._trace is not None:
                    self._trace.refused(request, now)
                self._answers.refused(request, now)
        if accepted:
            self._planner.durable = self._durable()
            operation: Operation
            for operation in self._schedule.add(accepted):
                if len(operation.members) > 1:
                    self._stats.merged(operation.kind, len(operation.members) - 1)
            self._execute()
        self._publish()
        return not (self._schedule.halted or self._stopping)

    def rest(self) -> bool:
        """Ask the driver to notify from now on. True: more is waiting already."""
        return self.queue.enable_notifications()

    def watch(self, watch: Watch) -> bool:
        """Give ``watch`` the words that change with a new request or a completion.

        False if operations are in flight and only the engine's notifier reports completions.
        """
        self.queue.watch(watch)
        return not self._schedule.executing or self.engine.watch(watch)

    def look(self) -> bool:
        """Answer completions. True: more requests are waiting."""
        if self._schedule.executing:
            self.complete()
        return self.queue.available()

    def complete(self) -> None:
        """Answer completions, and start the operations that may start by now."""
        self._execute()
        self._publish()

    def ask(self, halt: bool) -> None:
        """Announce a :meth:`halt`, or withdraw it. From any thread.

        The serving thread may be in the middle of a batch that an engine
        executes one by one: the next operation does not start.
        """
        self._halting = halt

    def halt(self) -> None:
        """Start nothing from now on, and keep the requests that are not in flight."""
        self._schedule.halt()

    def resume(self) -> None:
        """Undo :meth:`halt` once :attr:`idle`: the kept requests start before those in the ring."""
        request: Request
        self._planner.durable = self._durable()
        now = time.monotonic_ns()
        for request in self._schedule.resume(self._parser.capacity):
            self._answers.executed(request, now)
        self._execute()
        self._publish()

    def interrupt(self) -> None:
        """Interrupt the driver, whether or not anything is used. From any thread."""
        self._interrupt(self.queue.index)

    def unanswered(self) -> list[Request]:
        """The requests without an answer, in the order of the ring. Nothing is in flight."""
        return self._schedule.unanswered()

    def keep(self, requests: Sequence[Request], trace: "QueueTrace | None") -> None:
        """Halt, with the ``requests`` of a snapshot instead of its own. ``trace`` records them.

        Nothing is in flight.
        """
        now = time.monotonic_ns()
        request: Request
        for request in requests:
            request.started_ns = now
        self._trace = trace
        self._schedule.keep(requests, trace)

    def stop(self) -> None:
        """Start nothing from now on, and answer nothing. From any thread."""
        self._stopping = True
        self.engine.stop()

    def quiesce(self) -> None:
        """Stop, await the operations in flight, and forget all requests. For reset."""
        self.stop()
        notified = select.poll()
        if self.engine.notifier >= 0:
            notified.register(self.engine.notifier, select.POLLIN)
        self._execute()
        # Without a notifier nothing is in flight by now, even if a bug cut a submission short.
        while not self.idle and self.engine.notifier >= 0:
            notified.poll()
            self._execute()
        self._schedule.drop()

    def close(self) -> None:
        """Close the engine, which executes nothing."""
        self.engine.close()

    def _execute(self) -> None:
        """Start operations that may start, and answer completions, until there are none."""
        schedule, engine = self._schedule, self.engine
        while True:
            if self._may_start():
                ready = schedule.take(not self._singly)
                if ready and self._singly:
                    self._execute_singly(ready)
                    continue
                if ready:
                    engine.submit(ready)
            done = engine.completions()
            if not done:
                return
            self._finish(done)

    def _may_start(self) -> bool:
        if self._halting:
            self._schedule.halt()
        return not (self._stopping or self._schedule.halted)

    def _execute_singly(self, operations: list[Operation]) -> None:
        """Execute and answer each before the next; a halt keeps the rest.

        Up to MOST_READS reads in a row go together while reads are quick.
        """
        operation: Operation
        first, count = 0, len(operations)
        published = time.monotonic_ns()
        while first < count and self._may_start():
            behind = first
            for operation in operations[first : first + self._reads_at_once]:
                if operation.kind != VIRTIO_BLK_T_IN:
                    break
                behind += 1
            started = operations[first : max(behind, first + 1)]
            began = time.monotonic_ns()
            self._schedule.start(started)
            self.engine.submit(started)
            self._finish(self.engine.completions())
            now = time.monotonic_ns()
            quick = now - began < QUICK_NS
            self._reads_at_once = min(2 * self._reads_at_once, MOST_READS) if quick else 1
            if now - published >= HELD_NS:
                self._publish()
                published = now
            first += len(started)

    def _finish(self, done: Sequence[Operation]) -> None:
        """Answer the requests whose last operations are in ``done``."""
        operation: Operation
        request: Request
        schedule, answers = self._schedule, self._answers
        stopping = self._stopping  # read after completions(): a cancelled one is never answered
        left = iter(done)
        try:
            for operation in left:
                if stopping:
                    schedule.abandon(operation)
                    continue
                finished = operation.finished_ns
                for request in schedule.finish(operation):
                    answers.executed(request, finished)
        finally:
            for operation in left:  # after a bug: a reset must not wait for the rest
                schedule.abandon(operation)

    def _publish(self) -> None:
        if not self._stopping and self.queue.publish():
            self._interrupt(self.queue.index)
