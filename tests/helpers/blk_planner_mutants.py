"""Broken planners; see blk_mutants.py."""

from collections.abc import Callable, Sequence

from blk_requests import FLUSH, IN

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.modes import MergePolicy
from pykvm.hot.words import longs


def runs_where(
    requests: Sequence[Request], joins: Callable[[Request, Request], bool]
) -> list[Sequence[Request]]:
    """``requests``, cut where a request does not join the one before it. It ignores limits."""
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
    """Sorts windows without regard to overlaps."""

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
    """Plans two operations for a request that waits for one."""

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
    def _split(self, rest: Operation, start: int, made: list[Operation]) -> int:
        return min(super()._split(rest, start, made), 1)


class PiecesLeaveAByteOut(Planner):
    def _split(self, rest: Operation, start: int, made: list[Operation]) -> int:
        pieces = super()._split(rest, start, made)
        made[-1].length -= 1
        made[-1].lengths[made[-1].last - 1] -= 1
        return pieces


class WhatIsLeftIsForgotten(Planner):
    def _split(self, rest: Operation, start: int, made: list[Operation]) -> int:
        pieces = super()._split(rest, start, made)
        made[-1].left = 0
        return pieces


class AShortPieceForgetsWhatIsLeft(Planner):
    def rest(self, operation: Operation) -> Operation:
        made = super().rest(operation)
        made.left = 0
        return made


class FurtherPiecesAreNotCounted(Planner):
    def further(self, operation: Operation) -> list[Operation]:
        pending = operation.members[0].pending
        made = super().further(operation)
        operation.members[0].pending = pending
        return made


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
