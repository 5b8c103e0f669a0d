"""A saved recording of a disk: its survivors are tried, reduced, and written as images."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pykvm.crash.checker import Batch, Checker, Failure, failures_in
from pykvm.crash.checks import Check, ext4
from pykvm.crash.description import describe, lost_sectors
from pykvm.crash.dm_log import exported
from pykvm.crash.ext4_roles import roles
from pykvm.crash.minimise import minimise
from pykvm.crash.model import Frontier, Rules
from pykvm.crash.states import Coverage, Cuts, State, cuts, states
from pykvm.devices.virtio_blk import log_file
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.errors import HostError, UsageError, reason_of
from pykvm.forms import whole

DEFAULT_RULES = Rules()
_BATCH = 32
"""States of one task: its working copy takes a few milliseconds."""
_PIECE = 1 << 20
_MOST_DIGITS = 10**15


@dataclass(slots=True)
class Report:
    """The result of :meth:`Recorded.explore`, or its state meanwhile.

    ``checked`` counts states, and ``seconds`` is the time that they took. ``failures`` are in the
    order of their cuts.
    """

    failures: list[Failure] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    checked: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        extent = "complete" if self.coverage.complete else "bounded"
        text = (
            f"{self.checked} states checked in {self.seconds:.1f} s, {len(self.failures)} failed "
            f"({extent}: {_count(self.coverage.legal)} legal states)"
        )
        return "\n".join([text, *(f"{one.id}: {one.reason}" for one in self.failures[:5])])


@dataclass(frozen=True, slots=True)
class _Todo:
    """The arguments of :meth:`Recorded.explore` that choose states and check them."""

    checks: Sequence[Check]
    rules: Rules
    at: Cuts
    most: int
    seed: int
    shard: tuple[int, int]


class Recorded:
    """The recording that ``Recording.save`` wrote to ``folder``. ``log`` is its log.

    A check is a function of a Survivor that raises AssertionError if the survivor is wrong. Any
    other exception of a check goes to the caller: no state counts as passed because of it.
    """

    def __init__(self, folder: Path | str) -> None:
        """UsageError if the folder has no recording."""
        self.folder = Path(folder)
        self.log = log_file.load(self.folder / "log")

    def explore(
        self,
        checks: Sequence[Check] = (ext4,),
        *,
        rules: Rules = DEFAULT_RULES,
        at: Cuts = Cuts.FLUSH,
        most: int = 1000,
        seed: int = 1,
        shard: tuple[int, int] = (0, 1),
        executor: Executor | None = None,
        workers: int = 0,
        progress: Callable[[Report], None] = lambda report: None,
    ) -> Report:
        """Check at most ``most`` states that a power cut can leave behind.

        The states are those of :func:`pykvm.crash.states.states`. With ``shard`` (i, n), of each n
        of them only number i is checked: n machines share the work. The coverage is that of all.
        ``executor`` runs the checks, up to ``2 * workers`` tasks at a time. None: a thread for each
        CPU, because the usual checks are programs of their own. ``progress`` is called with the
        report so far.
        """
        if not checks:
            raise UsageError("there is nothing to check", "give at least one check")
        if whole("most", most) < 1 or whole("workers", workers) < 0:
            raise UsageError("there is nothing to do", "give 1 or more for most and workers")
        if not 0 <= shard[0] < shard[1]:
            raise UsageError(f"there is no shard {shard}", "give (0, 4) to (3, 4) for four shards")
        workers = workers or os.cpu_count() or 1
        todo = _Todo(checks, rules, at, most, seed, shard)
        if executor is not None:
            return self._explore(todo, executor, workers, progress)
        with ThreadPoolExecutor(workers, "crash") as threads:
            return self._explore(todo, threads, workers, progress)

    def _explore(
        self, todo: "_Todo", executor: Executor, workers: int, progress: Callable[[Report], None]
    ) -> Report:
        report = Report()
        began = time.monotonic()
        with Checker(self.folder, todo.rules) as own:
            chosen = states(
                own.log,
                cuts(own.log, todo.at),
                todo.rules,
                most=todo.most,
                seed=todo.seed,
                base=own.base,
                coverage=report.coverage,
            )
            mine = islice(chosen, todo.shard[0], None, todo.shard[1])
            # Few states, such as those of a check in a guest, are spread over all workers, too.
            batches = _batches(mine, min(_BATCH, max(1, todo.most // (4 * workers))))
            running: dict[Future[list[Failure]], int] = {}
            try:
                while True:
                    for batch in islice(batches, max(0, 2 * workers - len(running))):
                        task = executor.submit(
                            failures_in, self.folder, todo.rules, todo.checks, batch
                        )
                        running[task] = len(batch)
                    if not running:
                        break
                    for task in wait(running, return_when=FIRST_COMPLETED).done:
                        report.checked += running.pop(task)
                        report.failures += task.result()
                    report.seconds = time.monotonic() - began
                    progress(report)
            finally:
                for task in running:
                    task.cancel()
        report.failures.sort(key=_place)
        return report

    def minimise(
        self, name: str, checks: Sequence[Check] = (ext4,), *, at: Cuts = Cuts.REQUEST
    ) -> State:
        """The smallest state that fails like the one with the id ``name``: see minimise().

        UsageError if that one passes ``checks``.
        """
        with Checker(self.folder, DEFAULT_RULES) as checker:
            state = checker.named(name)
            if not checker.problem(state, checks):
                raise UsageError(f"the state '{name}' passes the check", "give one that fails")
            return minimise(
                state,
                lambda tried: bool(checker.problem(tried, checks)),
                cuts(self.log, at),
                checker.base,
            )

    def state(self, name: str) -> State:
        """The state with the id ``name``. UsageError."""
        with Checker(self.folder, DEFAULT_RULES) as checker:
            return checker.named(name)

    def describe(self, name: str) -> list[str]:
        """Lines about the state with the id ``name``: see :func:`pykvm.crash.describe`.

        If the disk has an ext4 filesystem, they name the roles that the lost sectors have at the
        end of the log. UsageError.
        """
        with Checker(self.folder, DEFAULT_RULES) as checker:
            state = checker.named(name)
            lost = {
                sector: self.log.entries[entry].content(sector)
                for entry, sectors in lost_sectors(state).items()
                for sector in sectors
            }
            everything = Frontier(self.log, self.log.events, DEFAULT_RULES)
            complete = State(everything, (1 << len(everything.pieces)) - 1)
            try:
                checker.problem(complete, (ext4,))  # replays the journal
                return describe(state, roles(checker.path, lost))
            except (HostError, AssertionError):  # the tools are missing, or hang
                return describe(state)

    def problem(self, name: str, checks: Sequence[Check] = (ext4,)) -> str:
        """The words of the check that fails for the state with the id ``name``; "" if none does."""
        with Checker(self.folder, DEFAULT_RULES) as checker:
            return checker.problem(checker.named(name), checks)

    def write_image(self, name: str, path: Path | str) -> None:
        """Write the disk in the state with the id ``name`` to a new file. UsageError."""
        with Checker(self.folder, DEFAULT_RULES) as checker:
            source = checker.survivor(checker.named(name)).path
            try:
                with Path(path).open("xb") as file, Path(source).open("rb") as survivor:
                    file.truncate(self.log.sectors * SECTOR_SIZE)
                    while piece := survivor.read(_PIECE):
                        if piece != bytes(len(piece)):
                            file.seek(survivor.tell() - len(piece))
                            file.write(piece)
            except OSError as error:
                reason = reason_of(error)
                raise UsageError(f"the image {path} cannot be written: {reason}") from None

    def export(self, path: Path | str) -> None:
        """Write the log to a new file in the format of dm-log-writes. UsageError."""
        try:
            with Path(path).open("xb") as file:
                file.writelines(exported(self.log))
        except OSError as error:
            reason = reason_of(error)
            raise UsageError(f"the log {path} cannot be written: {reason}") from None


def _batches(chosen: Iterator[State], size: int) -> Iterator[Batch]:
    while batch := [(state.frontier.cut, state.kept) for state in islice(chosen, size)]:
        yield batch


def _count(number: int) -> str:
    """``number``, or its size if it has too many digits to read."""
    return str(number) if number < _MOST_DIGITS else f"more than 2^{number.bit_length() - 1}"


def _place(failure: Failure) -> tuple[int, int]:
    *_, cut, kept = failure.id.split("-")
    return int(cut), int(kept, 16)
