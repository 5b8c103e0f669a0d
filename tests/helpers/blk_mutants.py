"""Broken planners, orders and schedules, which the contract must catch.

Each is a mistake that is easy to make, some of them with a history in other
devices. ``policy`` is the one with which it shows, None for any of them.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from blk_planner_mutants import (
    AShortPieceForgetsWhatIsLeft,
    FirstPieceAnswers,
    FlushesOvertakeWrites,
    ForgetsTheLast,
    FurtherPiecesAreNotCounted,
    JoinsDirections,
    JoinsFlushes,
    JoinsOverAGap,
    KnowsNoLimits,
    MergedWritesAreNotDurable,
    MixesUpSegments,
    OneTooMany,
    PiecesLeaveAByteOut,
    PlansOneTwice,
    ReadsOvertakeTheWritesTheyRead,
    SinglyForgetsOne,
    SortsOverlappingWrites,
    TheRestBeginsASectorLate,
    TheRestIsTheWhole,
    WhatIsLeftIsForgotten,
)
from blk_requests import FLUSH, IN

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_OK
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.ordering import Unfinished, order
from pykvm.devices.virtio_blk.core.planner import Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.core.scheduler import Schedule
from pykvm.devices.virtio_blk.modes import MergePolicy


@dataclass(frozen=True)
class Mutant:
    """A planner and a schedule, one of them broken."""

    planner: type[Planner] = Planner
    schedule: type[Schedule] = Schedule
    policy: MergePolicy | None = None

    @property
    def name(self) -> str:
        """The name of the broken class."""
        return (self.schedule if self.planner is Planner else self.planner).__name__


# -- orders -------------------------------------------------------------------


class Ordered(Schedule):
    """A schedule with a different order."""

    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        """Order the operations, as :func:`order` does or differently."""
        raise NotImplementedError

    def _plan(self, requests: Sequence[Request]) -> list[Operation]:
        operations = self._planner.plan(requests)
        self._ready += self.order(operations)
        return operations


class OverlapsDoNotWait(Ordered):
    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        order(operations, self._unfinished)
        for operation in operations:
            operation.followers[:] = [
                f for f in operation.followers if f.kind == FLUSH and f.members
            ]
            if operation.kind != FLUSH:
                operation.waits = 0
        return [operation for operation in operations if not operation.waits]


class OverlapsWaitForAPieceAlone(OverlapsDoNotWait):
    """And run before the request's last piece fails, stops the VM, and starts all pieces again."""

    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        super().order(operations)
        for index, later in enumerate(operations):
            for earlier in operations[:index]:
                overlap = (
                    earlier.offset < later.offset + later.length
                    and later.offset < earlier.offset + earlier.length
                )
                if overlap and not {earlier.kind, later.kind} <= {IN, FLUSH}:
                    earlier.followers.append(later)
                    later.waits += 1
        return [operation for operation in operations if not operation.waits]


class WhatIsLeftOverlapsNobody(Ordered):
    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        left = [operation.left for operation in operations]
        for operation in operations:
            operation.left = 0
        ready = order(operations, self._unfinished)
        for operation, rest in zip(operations, left, strict=True):
            operation.left = rest
        return ready


class FlushesForgetEarlierDrains(Ordered):
    def order(self, operations: Sequence[Operation]) -> list[Operation]:
        ready = order(operations, Unfinished())
        self._unfinished.recent.update(dict.fromkeys(operations))
        return ready


class FollowersWaitForTheFirstSuccessor(Schedule):
    def _replace(self, operation: Operation, successors: Sequence[Operation]) -> None:
        followers = list(operation.followers)
        super()._replace(operation, successors)
        for successor in successors[1:]:
            successor.followers.clear()
        for follower in followers:
            follower.waits -= len(successors) - 1


# -- schedules ----------------------------------------------------------------


class OneBadSectorFailsTheRun(Schedule):
    """Restarts as other devices do."""

    def finish(self, operation: Operation) -> Sequence[Request]:
        if len(operation.members) == 1 or not operation.error:
            return super().finish(operation)
        self.executing -= 1
        self._unfinished.remove(operation)
        for request in operation.members:
            request.error = operation.error
        self._start_followers(operation)
        return self._settle(operation.members)


class ShortIsDone(Schedule):
    def finish(self, operation: Operation) -> Sequence[Request]:
        if not operation.error:
            operation.moved = operation.length
        return super().finish(operation)


class TheEndOfTheFileIsTriedForEver(Schedule):
    def finish(self, operation: Operation) -> Sequence[Request]:
        if not operation.error and not operation.moved and len(operation.members) == 1:
            self.executing -= 1
            self._replace(operation, [self._planner.rest(operation)])
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
    """Resumes in the order of a restart list, which is wrong even if no answer differs."""

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
    """Held requests start again in a run, and once more with the run's other members."""

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
    def _settle(self, requests: Sequence[Request]) -> list[Request]:
        answered = super()._settle(requests)
        for request in answered:
            request.status = int(bool(request.error))
        return answered


class EveryErrorIsEio(Schedule):
    def finish(self, operation: Operation) -> Sequence[Request]:
        operation.error = errno.EIO if operation.error else 0
        return super().finish(operation)


class FailuresSucceed(Schedule):
    def _settle(self, requests: Sequence[Request]) -> list[Request]:
        answered = super()._settle(requests)
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
    Mutant(planner=WhatIsLeftIsForgotten),
    Mutant(planner=AShortPieceForgetsWhatIsLeft),
    Mutant(planner=FurtherPiecesAreNotCounted),
    Mutant(planner=SinglyForgetsOne, policy=SEQUENTIAL),
    Mutant(planner=TheRestIsTheWhole),
    Mutant(planner=TheRestBeginsASectorLate),
    Mutant(schedule=OverlapsDoNotWait),
    Mutant(schedule=OverlapsWaitForAPieceAlone, policy=MergePolicy.OFF),
    Mutant(schedule=WhatIsLeftOverlapsNobody),
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
