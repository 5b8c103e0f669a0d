"""Checks states of a recorded log, one after the other, in one process or thread."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pykvm.crash.checks import Check, Survivor
from pykvm.crash.model import Frontier, Rules
from pykvm.crash.states import State, state_of
from pykvm.crash.working_copy import WorkingCopy
from pykvm.devices.virtio_blk import log_file
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE

Batch = Sequence[tuple[int, int]]
"""(cut, kept) of states."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A state that a check found wrong: its id, and the words of the check."""

    id: str
    reason: str


class Checker:
    """The log and the base image in a folder, and a working copy of the image. A context manager.

    One thread at a time uses it.
    """

    def __init__(self, folder: Path, rules: Rules) -> None:
        """UsageError if a file cannot be read."""
        self.log = log_file.load(folder / "log")
        self._copy = WorkingCopy(folder / "base", self.log.sectors * SECTOR_SIZE)
        self._rules = rules
        self._frontier: Frontier | None = None

    def base(self, sector: int) -> bytes:
        """See :data:`pykvm.crash.model.Base`."""
        return self._copy.base(sector)

    @property
    def path(self) -> str:
        """The image, as the last check left it."""
        return self._copy.path

    def state(self, cut: int, kept: int) -> State:
        """The state with the pieces ``kept`` at ``cut``."""
        if self._frontier is None or self._frontier.cut != cut:
            self._frontier = Frontier(self.log, cut, self._rules, self.base)
        return State(self._frontier, kept)

    def named(self, name: str) -> State:
        """The state with the id ``name``. UsageError."""
        return state_of(self.log, name, self.base)

    def survivor(self, state: State) -> Survivor:
        """The disk in ``state``, until the next call."""
        self._copy.take_on(state)
        return Survivor(self._copy.path, state.frontier.marks)

    def problem(self, state: State, checks: Sequence[Check]) -> str:
        """The words of the first of ``checks`` that fails; "" if all pass."""
        survivor = self.survivor(state)
        try:
            for check in checks:
                check(survivor)
        except AssertionError as error:
            return str(error) or "the check failed"
        return ""

    def close(self) -> None:
        """Free the memory."""
        self._copy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def failures_in(folder: Path, rules: Rules, checks: Sequence[Check], batch: Batch) -> list[Failure]:
    """The failures among the states of ``batch``: a task for an executor."""
    failures = []
    with Checker(folder, rules) as checker:
        for cut, kept in batch:
            state = checker.state(cut, kept)
            if reason := checker.problem(state, checks):
                failures.append(Failure(state.id, reason))
    return failures
