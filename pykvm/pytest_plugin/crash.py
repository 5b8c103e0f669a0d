"""The fixture pykvm_crash: a test records a workload, and checks every power cut."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from pykvm.crash import Check, Cuts, Model, Recorded, Report, Rules, Tear, ext4
from pykvm.errors import UsageError, shown
from pykvm.guest.guest import Guest
from pykvm.guest.result import Command

STATES: Final = 1000
_WORDS: Final = 1000
"""The most characters of a check's words in a report."""

Work = Command | Callable[[Guest, Callable[[str], None]], object]
"""A command for the guest, or a function that gets the guest and ``mark(label)``."""


class CrashTest:
    """Records workloads of a test, and checks the contents that power cuts can leave."""

    def __init__(self, guest: Callable[[], Guest], folder: Path, config: pytest.Config) -> None:
        """``guest()`` is the guest of the test, and ``folder`` takes the recordings.

        UsageError if the options of ``config`` are wrong.
        """
        self._guest = guest
        self._folder = folder
        self._count = 0
        self._replay: tuple[Path, str] | None = None
        text: str | None = config.getoption("--pykvm-crash-replay")
        if text is not None:
            place, comma, name = text.rpartition(",")
            if not comma:
                raise UsageError(
                    f"--pykvm-crash-replay cannot be '{shown(text)}'", "give DIR,ID of a report"
                )
            self._replay = Path(place), name
        self._states = _number(config.getoption("--pykvm-crash-states"))

    def record(self, setup: Command | None, workload: Work, *, disk: int = 0) -> Recorded:
        """Run ``setup`` in the test's guest, then record the writes of ``workload``.

        ``disk`` is the number of the disk among those of the guest. The writes of ``setup`` are
        stable; end it with ``sync``. The mark ``end`` follows the workload. CommandFailed.
        """
        if self._replay is not None:
            return Recorded(self._replay[0])
        guest = self._guest()
        if setup is not None:
            guest.run(setup)
        folder = self._folder / f"recording-{self._count}"
        self._count += 1
        with guest.disks[disk].record() as recording:
            if callable(workload):
                workload(guest, recording.mark)
            else:
                guest.run(workload)
            recording.mark("end")
            recording.save(folder)
        return Recorded(folder)

    def check(
        self,
        recorded: Recorded,
        *checks: Check,
        states: int | None = None,
        seed: int = 1,
        model: Model = Model.VIRTIO,
        tear: Tear = Tear.BLOCK,
        at: Cuts = Cuts.FLUSH,
        **options: Any,
    ) -> Report:
        """Check up to ``states`` survivors of power cuts; fail the test if a check fails.

        Without ``checks``, the ext4 filesystem is checked. ``states`` is by default that of
        ``--pykvm-crash-states``. ``options`` are further ones of ``Recorded.explore``.
        """
        wanted = checks or (ext4,)
        if self._replay is not None:
            name = self._replay[1]
            if problem := recorded.problem(name, wanted):
                pytest.fail(_story(recorded, name, problem), pytrace=False)
            return Report(checked=1)
        report = recorded.explore(
            wanted,
            rules=Rules(model, tear),
            at=at,
            most=self._states if states is None else states,
            seed=seed,
            **options,
        )
        if report.failures:
            smallest, problem = report.failures[0].id, report.failures[0].reason
            with suppress(UsageError):  # it passed this time, for instance because a tool was slow
                smallest = recorded.minimise(smallest, wanted).id
                problem = recorded.problem(smallest, wanted) or problem
            first = str(report).splitlines()[0]
            story = _story(recorded, smallest, problem)
            pytest.fail(f"power cuts break it: {first}\n{story}", pytrace=False)
        return report


def _story(recorded: Recorded, name: str, problem: str) -> str:
    lines = [
        *recorded.describe(name),
        shown(problem, keep="\n", most=_WORDS),
        f"this state again: --pykvm-crash-replay {shown(str(recorded.folder))},{name}",
    ]
    return "\n".join(lines)


def _number(text: str | None) -> int:
    if text is None:
        return STATES
    if not text.isdecimal() or not 0 < len(text) < 10 or not int(text):
        raise UsageError(
            f"--pykvm-crash-states cannot be '{shown(text)}'", "give a number of states"
        )
    return int(text)
