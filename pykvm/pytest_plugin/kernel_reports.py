"""The reports of a Linux kernel about itself, in the text of its console or its log. Pure."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from pykvm.lean.records import record

KINDS: Final = ("panic", "oops", "bug", "warning", "hung-task", "kasan")
_BEGINNING: Final = r"^(?:<\d+>)?(?:\[[ \d.]+\](?:\[[^\]\n]*\])? )?"
"""A message may have its level, its time, and the number of its task or CPU."""
_PATTERNS: Final = {
    "kasan": r"BUG: KASAN: ",
    "panic": r"Kernel panic - not syncing",
    "hung-task": r"INFO: task .{0,40} blocked for more than \d+ seconds",
    "oops": r"(?:BUG: kernel NULL pointer dereference|BUG: unable to handle "
    r"|Oops: |general protection fault|PANIC: double fault|divide error: )",
    "bug": r"(?:kernel BUG at |(?:watchdog: )?BUG: )",
    "warning": r"WARNING: ",
}
_REPORT: Final = re.compile(
    _BEGINNING
    + "(?P<line>"
    + "|".join(f"(?P<{kind.replace('-', '_')}>{pattern}).*" for kind, pattern in _PATTERNS.items())
    + ")$",
    re.MULTILINE,
)


@record
class KernelReport:
    """A report: its kind, one of KINDS, and its first line."""

    kind: str
    line: str


def kernel_reports(*texts: str) -> list[KernelReport]:
    """The reports in ``texts``, each once, in their order."""
    return list(dict.fromkeys(report for text in texts for report in _reports(text)))


def _reports(text: str) -> Iterator[KernelReport]:
    for match in _REPORT.finditer(text.replace("\r\n", "\n")):
        kind = next(kind for kind in KINDS if match[kind.replace("-", "_")] is not None)
        yield KernelReport(kind, match["line"].rstrip())


def first_of(kinds: Iterable[str], reports: Iterable[KernelReport]) -> KernelReport | None:
    """The first of ``reports`` whose kind is among ``kinds``."""
    wanted = frozenset(kinds)
    return next((report for report in reports if report.kind in wanted), None)
