"""The report of ``pykvm doctor``, as text and as a JSON object."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from pykvm import __version__
from pykvm.errors import shown
from pykvm.kvm.host_traits import HostTraits
from pykvm.machine.guest import EMULATED, NATIVE


class Mark(Enum):
    """The severity of a finding."""

    OK = "ok"
    NOTE = "note"
    """It works, with a cost or a limit."""
    BAD = "BAD"
    """It prevents every guest from running."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    mark: Mark
    text: str


@dataclass(slots=True)
class Report:
    """All findings about a host. :func:`as_object` gives the JSON interface."""

    findings: list[Finding] = field(default_factory=list)
    api_version: int | None = None
    form: str = "interpreted"
    """The form of the hot path: interpreted or compiled."""
    capabilities: dict[str, int] = field(default_factory=dict)
    traits: HostTraits | None = None
    problems: list[str] = field(default_factory=list)
    """The reasons why no guest can run, each with its remedy."""

    def add(self, subject: str, text: str, mark: Mark = Mark.OK) -> None:
        """Add a finding."""
        self.findings.append(Finding(subject, mark, text))

    def fail(self, subject: str, text: str, problem: str) -> None:
        """Add a finding that prevents every guest from running, and the ``problem`` with it."""
        self.add(subject, text, Mark.BAD)
        self.problems.append(problem)

    @property
    def usable(self) -> bool:
        """True if guests can run."""
        return not self.problems

    @property
    def flavour(self) -> str | None:
        """The flavour of the bundled guest that suits this host; None if KVM cannot be asked."""
        if self.traits is None:
            return None
        return EMULATED if self.traits.needs_assists else NATIVE


def as_object(report: Report) -> dict[str, object]:
    """The JSON object: stable keys for programs, and the findings as people see them."""
    traits = report.traits
    return {
        "version": __version__,
        "usable": report.usable,
        "problems": report.problems,
        "flavour": report.flavour,
        "form": report.form,
        "api_version": report.api_version,
        "needs_assists": bool(traits and traits.needs_assists),
        "assists": traits.reasons if traits else [],
        "traits": vars(traits) if traits else None,
        "capabilities": report.capabilities,
        "findings": [
            {"subject": f.subject, "mark": f.mark.value.lower(), "text": f.text}
            for f in report.findings
        ],
    }


_COLOURS = {Mark.OK: "32", Mark.NOTE: "33", Mark.BAD: "31"}


def as_text(report: Report, colour: bool = False) -> str:
    """The report for people: one aligned line per finding, then the verdict."""
    width = max(len(shown(finding.subject)) for finding in report.findings)
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    lines = [f"pykvm {__version__} on {system}", ""]
    for finding in report.findings:
        mark = f"{finding.mark.value:<4}"
        if colour:
            mark = f"\x1b[{_COLOURS[finding.mark]}m{mark}\x1b[0m"
        lines.append(f"  {shown(finding.subject):<{width}}  {mark}  {shown(finding.text)}")
    return "\n".join([*lines, "", *_verdict(report)])


def _verdict(report: Report) -> Iterable[str]:
    if not report.usable:
        yield "No guest can run here:"
        yield from (f"  {shown(problem)}" for problem in report.problems)
    elif report.flavour == EMULATED:
        yield "Guests run here, with assists: KVM emulates the guest's kernel code on this host."
        yield "Guest programs run at full speed, guest kernel code some hundred times slower."
    else:
        yield "Guests run here at full speed; no assist is needed."
