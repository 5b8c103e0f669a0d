"""The end of a test: kernels that reported failures, and guests in the report of a failed test."""

import sys
from collections.abc import Sequence

import pytest

from pykvm.errors import PykvmError
from pykvm.machine.outcome import OutcomeKind
from pykvm.pytest_plugin.artefacts import Artefacts
from pykvm.pytest_plugin.kernel_reports import kernel_reports
from pykvm.pytest_plugin.report import GuestReport, shell_command
from pykvm.pytest_plugin.watched import Watched

_CRASHES = (OutcomeKind.PANIC, OutcomeKind.TRIPLE_FAULT)


def kernel_failure(watched: Watched) -> str:
    """A sentence about the first failure that the guest's kernel has reported; "" if none.

    The guest's spec says which reports are failures.
    """
    kinds = watched.spec.fail_on
    for report in [*watched.reports, *kernel_reports(watched.guest.console.text)]:
        if report.kind in kinds:
            return f"the guest's kernel has reported a failure ({report.kind}): {report.line}"
    outcome = watched.guest.machine.outcome
    if "panic" in kinds and outcome is not None and outcome.kind in _CRASHES:
        return f"the guest has crashed: {outcome.reason}"
    return ""


def hide_own_frames() -> None:
    """Have tracebacks leave out the frames in which pykvm raises an error for its user."""
    for name, module in sys.modules.items():
        if name.startswith("pykvm."):
            vars(module)["__tracebackhide__"] = _for_users


def _for_users(error: "pytest.ExceptionInfo[BaseException]") -> bool:
    return isinstance(error.value, PykvmError)


class Outcomes:
    """Adds guests to reports, and writes their files, as the options say."""

    def __init__(self, config: pytest.Config) -> None:
        self._traces: bool = config.getoption("--pykvm-trace") == "on"
        self._keep: bool = config.getoption("--pykvm-keep")
        self._snapshots: bool = config.getoption("--pykvm-snapshot-on-failure")

    def add(
        self, report: pytest.TestReport, guests: Sequence[Watched], artefacts: Artefacts
    ) -> None:
        """Add ``guests`` to ``report``, if it failed, and write their files to ``artefacts``."""
        if not report.failed and not (report.when == "call" and (self._keep or self._traces)):
            return
        lines = []
        for number, watched in enumerate(guests, 1):
            name = f"guest {number}" if len(guests) > 1 else "guest"
            prefix = f"guest-{number}/" if len(guests) > 1 else ""
            facts = GuestReport(watched, report.failed)
            try:
                if report.failed or self._keep:
                    facts.write(artefacts, prefix)
                if report.failed or self._keep or self._traces:
                    facts.write_trace(artefacts, prefix)
                if report.failed:
                    lines.append(self._shell(name, watched, artefacts, prefix))
            except PykvmError as error:
                lines.append(str(error))
            if report.failed:
                report.sections += facts.sections(name)
        if report.failed:
            files = [f"the files are in {artefacts.folder}"] if artefacts else []
            report.sections.append(("pykvm files", "\n".join(files + lines)))

    def _shell(self, name: str, watched: Watched, artefacts: Artefacts, prefix: str) -> str:
        """A sentence about the way to a shell in the guest, which is saved for it."""
        if watched.guest.machine.outcome is not None:
            return f"the {name} has ended, so no shell can be opened in it"
        if not self._snapshots:
            return f"for a shell in the {name}: run this test with --pykvm-snapshot-on-failure"
        folder = artefacts.folder / f"{prefix}snapshot"
        try:
            with watched.guest.snapshot() as snapshot:
                snapshot.save(folder)
        except PykvmError as error:
            return f"the {name} could not be saved: {error}"
        return f"a shell in the {name}:\n    {shell_command(folder, watched)}"
