"""Devices with one fault each, which random drivers must notice::

    python tests/helpers/soak_mutants.py NAME --runs 60

does the same as ``python -m soak --runs 60``, with one of these devices. Each needs a separate
process, because its fault may leave threads behind.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_FLUSH
from pykvm.devices.virtio_blk.core import ordering
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.core.scheduler import Schedule
from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine
from pykvm.devices.virtio_blk.layers.overlay import OverlayImage
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.devices.virtio_blk.serving.answers import Answers
from pykvm.devices.virtio_blk.serving.io_thread import IoThread
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.devices.virtio_blk.write_cache import WriteCache
from pykvm.virtio.packed import PackedQueue
from pykvm.virtio.queue import Virtqueue
from pykvm.virtio.split import SplitQueue

Mutant = Callable[[], None]


def replace(owner: type, name: str, wrong: Any) -> None:
    """Put ``wrong`` in the place of the method ``name``, which has to be there."""
    getattr(owner, name)
    setattr(owner, name, wrong)


def notification_depends_on_a_count() -> None:
    def finish(self: Any, operation: Operation, failure: BaseException | None = None) -> None:
        self._done.append(operation)
        time.sleep(0)
        if len(self._done) == 1:
            os.eventfd_write(self.notifier, 1)

    ThreadsEngine._finish = finish


def used_length_is_one_too_many() -> None:
    push = Virtqueue.push

    def wrong(self: Any, head: int, length: int, *wrote: bool) -> None:
        push(self, head, length + (length > 1), *wrote)

    replace(Virtqueue, "push", wrong)


def byte_behind_the_status_is_written() -> None:
    answer = Answers.executed

    def wrong(self: Any, request: Request, finished_ns: int) -> None:
        answer(self, request, finished_ns)
        self._bytes[request.status_offset + 1] ^= 0xFF

    Answers.executed = wrong


def overlapping_requests_do_not_wait() -> None:
    ordering._order_overlaps = lambda operations: None


def flushes_do_not_wait() -> None:
    follow = ordering._follow

    def wrong(operation: Operation, predecessor: Operation) -> None:
        if operation.kind != VIRTIO_BLK_T_FLUSH:
            follow(operation, predecessor)

    ordering._follow = wrong


def write_through_does_not_sync() -> None:
    WriteCache.durable = lambda self: False


def queue_reset_forgets_what_executes() -> None:
    QueueService.quiesce = lambda self: self._schedule.drop()


def short_is_done() -> None:
    finish = Schedule.finish

    def wrong(self: Any, operation: Operation) -> Sequence[Request]:
        if not operation.error:
            operation.moved = operation.length
        return finish(self, operation)

    replace(Schedule, "finish", wrong)


def continuation_is_lost() -> None:
    again = Schedule._replace

    def wrong(self: Any, operation: Operation, successors: Sequence[Operation]) -> None:
        again(self, operation, successors)
        self._ready = self._ready[:-1]

    replace(Schedule, "_replace", wrong)


def ring_is_not_looked_at_again() -> None:
    for kind in (SplitQueue, PackedQueue):

        def wrong(self: Any, right: Any = kind.enable_notifications) -> bool:
            right(self)
            return False

        replace(kind, "enable_notifications", wrong)


def interrupts_are_lost() -> None:
    count = 0
    for kind in (SplitQueue, PackedQueue):

        def wrong(self: Any, right: Any = kind.publish) -> bool:
            nonlocal count
            count += 1
            return right(self) and bool(count % 40)

        replace(kind, "publish", wrong)


def resume_forgets_what_failed() -> None:
    resume = Schedule.resume

    def wrong(self: Any, *arguments: int) -> list[Request]:
        self._held.clear()
        return resume(self, *arguments)

    replace(Schedule, "resume", wrong)


def resume_wakes_nobody() -> None:
    def wrong(self: Any) -> None:
        with self._state:
            self._halting = self._quiet = False
            self._state.notify_all()

    replace(IoThread, "resume", wrong)


def operations_start_while_halted() -> None:
    take = Schedule.take

    def wrong(self: Any) -> list[Operation]:
        halted, self.halted = self.halted, False
        taken = take(self)
        self.halted = halted
        return taken

    replace(Schedule, "take", wrong)


def errors_are_not_reported() -> None:
    answered = Schedule._settle

    def wrong(self: Any, requests: Sequence[Request]) -> list[Request]:
        found = answered(self, requests)
        for request in found:
            request.status = 0
        return found

    replace(Schedule, "_settle", wrong)


def overlay_forgets_the_last_sector() -> None:
    add = OverlayImage.add
    OverlayImage.add = lambda self, at, length: add(self, at, length - 512)


def requests_are_used_out_of_order() -> None:
    def wrong(self: Any, head: int, length: int, *wrote: bool) -> None:
        self.chains[head].in_flight = False
        self.in_flight -= 1
        self._use(head, length, *wrote)

    replace(Virtqueue, "_use_in_order", wrong)


def failed_requests_add_bytes() -> None:
    failed = Stats.failed

    def wrong(self: Any, *arguments: int) -> None:
        failed(self, *arguments)
        self.wr_bytes += 512

    replace(Stats, "failed", wrong)


MUTANTS: dict[str, Mutant] = {
    mutant.__name__: mutant
    for mutant in (
        notification_depends_on_a_count,
        used_length_is_one_too_many,
        byte_behind_the_status_is_written,
        overlapping_requests_do_not_wait,
        flushes_do_not_wait,
        write_through_does_not_sync,
        queue_reset_forgets_what_executes,
        short_is_done,
        continuation_is_lost,
        ring_is_not_looked_at_again,
        interrupts_are_lost,
        resume_forgets_what_failed,
        resume_wakes_nobody,
        operations_start_while_halted,
        errors_are_not_reported,
        overlay_forgets_the_last_sector,
        requests_are_used_out_of_order,
        failed_requests_add_bytes,
    )
}

if __name__ == "__main__":
    MUTANTS[sys.argv.pop(1)]()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from soak.__main__ import main

    sys.exit(main())
