"""A guest of a test, with all that the test's report needs."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from pykvm.guest.guest import Guest
from pykvm.guest.process import Process
from pykvm.guest.snapshot import Snapshot
from pykvm.machine.outcome import OutcomeKind
from pykvm.pytest_plugin.kernel_reports import KernelReport, kernel_reports
from pykvm.pytest_plugin.places import Place
from pykvm.pytest_plugin.spec import Spec
from pykvm.trace.log import TraceLog

_MOST_COMMANDS: Final = 200
_MOST_EVENTS: Final = 20_000

Make = Callable[[TraceLog | None], Guest]
"""Makes a guest with this trace."""


class Watched:
    """``guest``, its ``spec``, its last ``commands``, its ``trace`` if any, and ``began``.

    ``reports`` are those of its kernel from before the test reset it.
    ``began`` is the moment from which on the guest works for the test, as time.monotonic_ns tells
    it. A guest that boots for the test does so after that moment.
    """

    def __init__(self, spec: Spec, make: Make, place: Place, *, traced: bool) -> None:
        self.spec = spec
        self._place = place
        self.trace = TraceLog(most=_MOST_EVENTS) if traced else None
        self.commands: deque[Process] = deque(maxlen=_MOST_COMMANDS)
        self.began = time.monotonic_ns()
        try:
            self.guest = make(self.trace)
        except BaseException:
            place.give_back()
            raise
        self.reports: list[KernelReport] = []
        self.guest.on_command = self.commands.append
        self.guest.on_reset = self._keep_reports
        self._disks = [(disk, disk.faults.rules) for disk in self.guest.disks]
        self._timeout = self.guest.timeout

    def put_back(self, spec: Spec, snapshot: Snapshot) -> bool:
        """Put the guest back to ``snapshot``, for a test that has ``spec``.

        False if a new guest has to come, which is so if the guest has ended, or if the test
        before added or removed disks, or removed rules that the spec gave a disk.
        """
        guest = self.guest
        if guest.outcome is not None or guest.disks != [disk for disk, _ in self._disks]:
            return False
        for disk, rules in self._disks:
            for rule in disk.faults.rules:
                if rule not in rules:
                    disk.faults.remove(rule)
            if disk.faults.rules != rules:
                return False
            disk.limits = disk.config.limits
        self.spec = spec
        guest.timeout = self._timeout
        guest.reset(snapshot)
        self.commands.clear()
        self.reports.clear()
        if self.trace is not None:
            self.trace.clear()
        self.began = time.monotonic_ns()
        return True

    def _keep_reports(self) -> None:
        self.reports += kernel_reports(self.guest.console.text)
        outcome = self.guest.outcome
        if outcome is not None and outcome.kind is OutcomeKind.TRIPLE_FAULT:
            self.reports.append(KernelReport("panic", outcome.reason))

    def close(self) -> None:
        """Close the guest. May be repeated."""
        try:
            self.guest.close()
        finally:
            self._place.give_back()
