"""Injects faults into a disk: a plan of faults, and an engine that applies it to any other::

    plan = FaultPlan([Fault(operation="read", sectors=100, errno="EIO")])
    disk = DiskConfig(path, faults=plan)
    … start the machine …
    rule = plan.add(Fault(operation="write", errno="ENOSPC"))
    … look at rule.strikes …
    plan.remove(rule)

Only runs with faults import this module.
"""

import errno
import heapq
import os
import select
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from pykvm import forms
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.layers.fault_file import parse_faults
from pykvm.devices.virtio_blk.layers.fault_rules import Access, Effect, Fault, FaultRule, FaultRules
from pykvm.devices.virtio_blk.layers.wrapper import EngineWrapper
from pykvm.errors import UsageError, reason_of
from pykvm.host.timerfd import Timer
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved

__all__ = ["Access", "Effect", "Fault", "FaultEngine", "FaultPlan", "FaultRule"]

_NS_PER_MS = 1_000_000


class FaultPlan:
    """The fault rules of one disk. Any thread may change them while the disk runs.

    The rules and their counts outlive the engines that apply the plan, so a
    reset of the device does not reset them. A plan that several disks share
    counts the operations of all of them. ``path`` is the file of the plan, or "".
    """

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        """``seed`` is a whole number. Equal seeds give equal operations the same faults."""
        self.path = ""
        self._rules = FaultRules(faults, seed)
        # Reentrant, because the call of a fault may change the plan.
        self._lock = threading.RLock()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The plan in a TOML file (docs/howto/inject-faults.md). UsageError, naming the file."""
        try:
            text = forms.path("path", path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = str(error)
            if isinstance(error, OSError):
                reason = reason_of(error)
            elif isinstance(error, UnicodeDecodeError):
                reason = "it is not UTF-8"
            hint = "give a TOML file with fault rules"
            raise UsageError(f"the fault file '{path}' cannot be read: {reason}", hint) from None
        plan = cls()
        plan.path = str(path)
        try:
            plan._rules = parse_faults(text)
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}", error.hint) from None
        return plan

    @property
    def rules(self) -> tuple[FaultRule, ...]:
        """The rules in their order."""
        with self._lock:
            return tuple(self._rules.rules)

    def add(self, fault: Fault) -> FaultRule:
        """Add a rule after all others; it does not affect operations in flight."""
        with self._lock:
            return self._rules.add(fault)

    def remove(self, rule: FaultRule) -> None:
        """Remove a rule, if it is there. The operations that it has delayed stay delayed."""
        with self._lock, suppress(ValueError):
            self._rules.rules.remove(rule)

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.rules.clear()

    def copy(self) -> "FaultPlan":
        """A plan with the same rules and counts, which goes on independently."""
        made = FaultPlan()
        made.path = self.path
        with self._lock:
            made._rules = self._rules.copy()
        return made

    def save(self) -> Fields:
        """The rules and their state, for a snapshot."""
        with self._lock:
            return self._rules.save()

    def restore(self, saved: Saved) -> None:
        """Take over the state of a snapshot, if its rules were the same. SnapshotError."""
        with self._lock:
            self._rules.load(saved)

    @property
    def idle(self) -> bool:
        """No rule is there now."""
        return not self._rules.rules

    def effect(self, operation: Operation) -> Effect | None:
        """The effect on ``operation``; None: the engine executes it as it is."""
        with self._lock:
            return self._rules.effect(Access.of(operation)) if self._rules.rules else None

    def wrap(self, engine: EngineFactory = SyncEngine) -> EngineFactory:
        """Makes engines like ``engine`` does, which apply this plan."""

        def make(image: Image, ram: Ram) -> Engine:
            inner = engine(image, ram)
            try:
                return FaultEngine(inner, self)
            except BaseException:
                inner.close()
                raise

        return make


class FaultEngine(EngineWrapper):
    """Applies ``plan`` to each operation, and has ``inner`` execute the remaining part.

    A delayed operation starts when its delay is over. It delays no other
    operation: the I/O thread goes on, and ``notifier`` is readable when a delay is over.
    """

    def __init__(self, inner: Engine, plan: FaultPlan) -> None:
        """``inner`` belongs to the new engine."""
        super().__init__(inner)
        self._plan = plan
        self._stopped = False
        self._woken = False  # _wake may be readable
        self._done: list[Operation] = []
        # The operation for which the inner engine executes a part, and its error afterwards.
        self._parts: dict[Operation, tuple[Operation, int]] = {}
        self._delayed: list[tuple[int, int, Operation, Effect]] = []
        self._number = 0
        with ExitStack() as stack:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._wake)
            self._timer = Timer()
            stack.callback(self._timer.close)
            # An epoll descriptor is readable while one of its members is.
            self._epoll = select.epoll()
            stack.callback(self._epoll.close)
            for fd in (self._wake, self._timer.fd, inner.notifier):
                if fd >= 0:
                    self._epoll.register(fd, select.EPOLLIN)
            self._owned = stack.pop_all()

    @property
    def notifier(self) -> int:
        """See :class:`Engine`."""
        return self._epoll.fileno()

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        if self._plan.idle:
            self._submit(operations)
            if self._inner.notifier < 0:
                self._notify()
            return
        try:
            effects = [self._plan.effect(operation) for operation in operations]
        except BaseException:
            self._cancel(operations)  # a reset must not wait because a call has a bug
            raise
        started = []
        for operation, effect in zip(operations, effects, strict=True):
            if effect is None or self._stopped:  # the inner engine cancels it
                started.append(operation)
            elif effect.delay_ms:
                self._delay(operation, effect)
            else:
                started += self._apply(operation, effect)
        if started:
            self._submit(started)
        if self._done or (started and self._inner.notifier < 0):
            self._notify()

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        if self._woken:
            self._woken = False
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        if self._delayed:
            self._start_delayed()
        if not self._done and not self._parts:
            return self._inner.completions()
        done, self._done = self._done, []
        for operation in self._inner.completions():
            part = self._parts.pop(operation, None)
            done.append(_whole(operation, *part) if part else operation)
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`. No word changes when a delay is over."""
        return not self._delayed and not self._done and super().watch(watch)

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._stopped = True
        super().stop()
        self._notify()

    def close(self) -> None:
        """See :class:`Engine`."""
        left = [*self._done, *self._delayed, *self._parts]
        assert not left, "completions were left behind"
        self._owned.close()
        super().close()

    def _notify(self) -> None:
        """Make ``notifier`` readable. From any thread."""
        os.eventfd_write(self._wake, 1)
        # Afterwards: what completions() reads too early, it reads once more.
        self._woken = True

    def _apply(self, operation: Operation, effect: Effect) -> list[Operation]:
        """The operations for the inner engine: ``operation``, a part of it, or none."""
        error, short = effect.error, effect.short
        if not error and (short is None or short >= operation.length):
            return [operation]
        length = min(short or 0, operation.length)
        if not length:
            self._finish(operation, error)
            return []
        part = Operation()
        part.clip(operation, 0, length)
        self._parts[part] = operation, error
        return [part]

    def _submit(self, operations: Sequence[Operation]) -> None:
        try:
            self._inner.submit(operations)
        except BaseException:
            if self._inner.notifier < 0:
                # Such an engine would have completed them by now, and will not do so later.
                self._cancel([self._parts.pop(op, (op, 0))[0] for op in operations])
            raise

    def _delay(self, operation: Operation, effect: Effect) -> None:
        moment = time.monotonic_ns() + int(effect.delay_ms * _NS_PER_MS)
        # The number keeps operations of the same moment in their order.
        heapq.heappush(self._delayed, (moment, self._number, operation, effect))
        self._number += 1
        self._timer.set(self._delayed[0][0])

    def _start_delayed(self) -> None:
        """Start the operations whose delay is over; after :meth:`stop`, cancel all."""
        delayed = self._delayed
        if self._stopped:
            self._cancel([operation for _, _, operation, _ in delayed])
            delayed.clear()
        now = time.monotonic_ns()
        started = []
        while delayed and delayed[0][0] <= now:
            _, _, operation, effect = heapq.heappop(delayed)
            started += self._apply(operation, effect)
        self._timer.set(delayed[0][0] if delayed else 0)
        if started:
            self._submit(started)

    def _cancel(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self._finish(operation, errno.ECANCELED)

    def _finish(self, operation: Operation, error: int) -> None:
        operation.error = error
        operation.finished_ns = time.monotonic_ns()
        self._done.append(operation)


def _whole(part: Operation, operation: Operation, error: int) -> Operation:
    """``operation``, with the results of ``part``, which was executed for it, and ``error``."""
    operation.error = part.error or error
    operation.moved = part.moved
    operation.finished_ns = part.finished_ns
    return operation
