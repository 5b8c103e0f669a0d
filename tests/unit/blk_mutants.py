"""Broken planners, orders and schedules: what the contract must catch.

Each is a mistake that is easy to make, some of them with a history in other
devices. ``policy`` is the one with which it shows, None for any of them.
"""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blk_requests import FLUSH, IN

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_OK
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.devices.virtio_blk.options import MergePolicy
from pykvm.devices.virtio_blk.order import order
from pykvm.devices.virtio_blk.plan import Limits, Planner
from pykvm.devices.virtio_blk.request import Request
from pykvm.devices.virtio_blk.schedule import Schedule
from pykvm.native import longs


@dataclass(frozen=True)
class Mutant:
    """A planner and a schedule, one of them broken."""

    planner: type[Planner] = Planner
    schedule: type[Schedule] = Schedule
    policy: MergePolicy | None = None

    @property
    def name(self) -> str:
        """The broken class's."""
        return (self.schedule if self.planner is Planner else self.planner).__name__


def runs_where(
    requests: Sequence[Request], joins: Callable[[Request, Request], bool]
) -> list[Sequence[Request]]:
    """``requests`` cut where a request does not join the one before it. Knows no limits."""
    runs: list[list[Request]] = []
    for request in requests:
        if runs and joins(runs[-1][-1], request):
            runs[-1].append(request)
        else:
            runs.append([request])
    return list(runs)


def continues(one: Request, other: Request) -> bool:
    same = one.type == other.type != FLUSH
    return same and other.sector == one.sector + one.length // 512


# -- planners -----------------------------------------------------------------


class KnowsNoLimits(Planner):
    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        self._runs = lambda requests, limits: runs_where(requests, continues)
        return super().plan(requests)


class OneTooMany(Planner):
    def __init__(self, policy: MergePolicy, limits: Limits) -> None:
        super().__init__(policy, limits)
        self._limits = Limits(limits.requests + 1, limits.segments, limits.bytes)


class JoinsOverAGap(Planner):
    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        def near(one: Request, other: Request) -> bool:
            same = one.type == other.type != FLUSH
            return same and 0 <= other.sector - one.sector - one.length // 512 <= 1

        self._runs = lambda requests, limits: runs_where(requests, near)
        return super().plan(requests)


class JoinsDirections(Planner):
    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        def ends(one: Request, other: Request) -> bool:
            data = FLUSH not in (one.type, other.type)
            return data and other.sector == one.sector + one.length // 512

        self._runs = lambda requests, limits: runs_where(requests, ends)
        return super().plan(requests)


class JoinsFlushes(Planner):
    """A flush has sector 0 and length 0, so the next one begins where it ends."""

    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        def same(one: Request, other: Request) -> bool:
            return one.type == other.type == FLUSH

        self._runs = lambda requests, limits: runs_where(requests, same)
        return super().plan(requests)


class SortsOverlappingWrites(Planner):
    """As sorting windows without a look at overlaps does."""

    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        def windows(requests: Sequence[Request], limits: Limits) -> list[Sequence[Request]]:
            return [
                (request,)
                for window in runs_where(requests, lambda a, b: a.type == b.type != FLUSH)
                for request in sorted(window, key=lambda request: request.sector)
            ]

        self._runs = windows
        return super().plan(requests)


class ReadsOvertakeTheWritesTheyRead(Planner):
    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        def reads_first(requests: Sequence[Request], limits: Limits) -> list[Sequence[Request]]:
            return [(request,) for request in sorted(requests, key=lambda r: r.type != IN)]

        self._runs = reads_first
        return super().plan(requests)


class FlushesOvertakeWrites(Planner):
    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        def flushes_first(requests: Sequence[Request], limits: Limits) -> list[Sequence[Request]]:
            return [(request,) for request in sorted(requests, key=lambda r: r.type != FLUSH)]

        self._runs = flushes_first
        return super().plan(requests)


class ForgetsTheLast(Planner):
    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        plan = super().plan(requests)
        return plan[:-1] if len(plan) > 3 else plan


class PlansOneTwice(Planner):
    """The second operation is answered for a request that waits for one."""

    def plan(self, requests: Sequence[Request]) -> list[Operation]:
        plan = super().plan(requests)
        if len(requests) > 3:
            self._single(requests[-1], plan)
        return plan


class MixesUpSegments(Planner):
    def _merged(self, run: Sequence[Request]) -> Operation:
        operation = super()._merged(run)
        operation.offsets = longs(reversed(operation.offsets[: operation.last]))
        operation.lengths = longs(reversed(operation.lengths[: operation.last]))
        return operation


class MergedWritesAreNotDurable(Planner):
    def _merged(self, run: Sequence[Request]) -> Operation:
        operation = super()._merged(run)
        operation.durable = False
        return operation


class FirstPieceAnswers(Planner):
    def _split(self, rest: Operation, made: list[Operation]) -> int:
        return min(super()._split(rest, made), 1)


class PiecesLeaveAByteOut(Planner):
    def _split(self, rest: Operation, made: list[Operation]) -> int:
        pieces = super()._split(rest, made)
        made[-1].length -= 1
        made[-1].lengths[made[-1].last - 1] -= 1
        return pieces


class SinglyForgetsOne(Planner):
    def singly(self, operation: Operation) -> list[Operation]:
        return super().singly(operation)[:-1]


class TheRestIsTheWhole(Planner):
    def rest(self, operation: Operation) -> Operation:
        operation.moved = 0
        return super().rest(operation)


class TheRestBeginsASectorLate(Planner):
    def rest(self, operation: Operation) -> Operation:
        operation.moved = min(operation.moved + 512, operation.length - 1)
        return super().rest(operation)


# -- orders -------------------------------------------------------------------


class Ordered(Schedule):
    """A schedule with an order of its own."""

    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        """What :func:`order` does, or not."""
        raise NotImplementedError

    def _plan(self, requests: Sequence[Request]) -> list[Operation]:
        operations = self._planner.plan(requests)
        self._ready += self.order(operations)
        self._unfinished.update(dict.fromkeys(operations))
        return operations


class OverlapsDoNotWait(Ordered):
    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        order(operations, self._unfinished)
        for operation in operations:
            for follower in [f for f in operation.followers if f.kind != FLUSH]:
                operation.followers.remove(follower)
                follower.waits -= 1
        return [operation for operation in operations if not operation.waits]


class OverlapsWaitForAPieceAlone(Ordered):
    """And run before the request's last piece fails, stops the VM, and starts all pieces again."""

    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        order(operations, self._unfinished)
        for one in operations:
            end = one.offset + one.length
            for other in [f for f in one.followers if f.kind != FLUSH]:
                if other.offset >= end or other.offset + other.length <= one.offset:
                    one.followers.remove(other)
                    other.waits -= 1
        return [operation for operation in operations if not operation.waits]


class FlushesForgetEarlierDrains(Ordered):
    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        return order(operations, [])


class FollowersWaitForTheFirstSuccessor(Schedule):
    def _again(self, operation: Operation, successors: Sequence[Operation]) -> None:
        followers = list(operation.followers)
        super()._again(operation, successors)
        for successor in successors[1:]:
            successor.followers.clear()
        for follower in followers:
            follower.waits -= len(successors) - 1


# -- schedules ----------------------------------------------------------------


class OneBadSectorFailsTheRun(Schedule):
    """What every other device does."""

    def finish(self, operation: Operation) -> Sequence[Request]:
        if len(operation.members) == 1 or not operation.error:
            return super().finish(operation)
        self.executing -= 1
        del self._unfinished[operation]
        for request in operation.members:
            request.error = operation.error
        self._start_followers(operation)
        return self._answered(operation.members)


class ShortIsDone(Schedule):
    def finish(self, operation: Operation) -> Sequence[Request]:
        if not operation.error:
            operation.moved = operation.length
        return super().finish(operation)


class TheEndOfTheFileIsTriedForEver(Schedule):
    def finish(self, operation: Operation) -> Sequence[Request]:
        if not operation.error and not operation.moved and len(operation.members) == 1:
            self.executing -= 1
            del self._unfinished[operation]
            self._again(operation, [self._planner.rest(operation)])
            return ()
        return super().finish(operation)


class StartsWhileHalted(Schedule):
    def take(self) -> list[Operation]:
        halted, self.halted = self.halted, False
        taken = super().take()
        self.halted = halted
        return taken


class ForgetsWhatItHolds(Schedule):
    def resume(self) -> None:
        self._held.clear()
        super().resume()


class ForgetsWhatHasNotStarted(Schedule):
    def resume(self) -> None:
        self._unfinished.clear()
        super().resume()


class ResumesFailuresFirst(Schedule):
    """As restart lists do; its order is another one, even if nothing else comes of it."""

    def resume(self) -> None:
        held = list(self._held)
        for place, request in enumerate(held):
            request.sequence = place - len(held)
        super().resume()


class ResumesFailuresLast(Schedule):
    def resume(self) -> None:
        for place, request in enumerate(self._held):
            request.sequence = self._sequence + place
        super().resume()


class StaleChainOnRestart(Schedule):
    """What is held starts again in a run, and once more with the run's other members."""

    def resume(self) -> None:
        held = list(self._held)
        super().resume()
        if held:
            self._plan(held)


class RemembersOldErrors(Schedule):
    def resume(self) -> None:
        errors = {request: request.error for request in self._held}
        super().resume()
        for request, error in errors.items():
            request.error = error


class ReportsWhatItShouldIgnore(Schedule):
    def _answered(self, requests: Sequence[Request]) -> list[Request]:
        answered = super()._answered(requests)
        for request in answered:
            request.status = int(bool(request.error))
        return answered


class EveryErrorIsEio(Schedule):
    def finish(self, operation: Operation) -> Sequence[Request]:
        operation.error = errno.EIO if operation.error else 0
        return super().finish(operation)


class FailuresSucceed(Schedule):
    def _answered(self, requests: Sequence[Request]) -> list[Request]:
        answered = super()._answered(requests)
        for request in answered:
            request.status = VIRTIO_BLK_S_OK
        return answered


SEQUENTIAL = MergePolicy.SEQUENTIAL
MUTANTS = (
    Mutant(planner=KnowsNoLimits, policy=SEQUENTIAL),
    Mutant(planner=OneTooMany, policy=SEQUENTIAL),
    Mutant(planner=JoinsOverAGap, policy=SEQUENTIAL),
    Mutant(planner=JoinsDirections, policy=SEQUENTIAL),
    Mutant(planner=JoinsFlushes, policy=SEQUENTIAL),
    Mutant(planner=SortsOverlappingWrites, policy=MergePolicy.SORTED),
    Mutant(planner=ReadsOvertakeTheWritesTheyRead, policy=MergePolicy.SORTED_BATCH),
    Mutant(planner=FlushesOvertakeWrites, policy=MergePolicy.SORTED),
    Mutant(planner=ForgetsTheLast),
    Mutant(planner=PlansOneTwice),
    Mutant(planner=MixesUpSegments, policy=SEQUENTIAL),
    Mutant(planner=MergedWritesAreNotDurable, policy=MergePolicy.SORTED_BATCH),
    Mutant(planner=FirstPieceAnswers),
    Mutant(planner=PiecesLeaveAByteOut),
    Mutant(planner=SinglyForgetsOne, policy=SEQUENTIAL),
    Mutant(planner=TheRestIsTheWhole),
    Mutant(planner=TheRestBeginsASectorLate),
    Mutant(schedule=OverlapsDoNotWait),
    Mutant(schedule=OverlapsWaitForAPieceAlone, policy=MergePolicy.OFF),
    Mutant(schedule=FlushesForgetEarlierDrains),
    Mutant(schedule=FollowersWaitForTheFirstSuccessor, policy=SEQUENTIAL),
    Mutant(schedule=OneBadSectorFailsTheRun, policy=SEQUENTIAL),
    Mutant(schedule=ShortIsDone),
    Mutant(schedule=TheEndOfTheFileIsTriedForEver),
    Mutant(schedule=StartsWhileHalted),
    Mutant(schedule=ForgetsWhatItHolds),
    Mutant(schedule=ForgetsWhatHasNotStarted),
    Mutant(schedule=ResumesFailuresFirst, policy=SEQUENTIAL),
    Mutant(schedule=ResumesFailuresLast, policy=MergePolicy.SORTED),
    Mutant(schedule=StaleChainOnRestart, policy=SEQUENTIAL),
    Mutant(schedule=RemembersOldErrors),
    Mutant(schedule=ReportsWhatItShouldIgnore),
    Mutant(schedule=EveryErrorIsEio),
    Mutant(schedule=FailuresSucceed),
)
