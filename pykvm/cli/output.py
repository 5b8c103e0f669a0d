"""What a run leaves behind for people: the console's log and tail, the failure, the JSON report."""

import base64
from collections.abc import Callable
from typing import IO, Any

from pykvm.cli.say import say
from pykvm.machine.machine import Machine
from pykvm.platform.outcome import Outcome, OutcomeKind

TAIL_BYTES = 16 << 10
TAIL_LINES = 20
_QUIET = (OutcomeKind.POWER_OFF, OutcomeKind.RESET, OutcomeKind.HALTED, OutcomeKind.QUIT)


class ConsoleRecorder:
    """Takes the guest's console: into the log file, to the screen, and keeps the last lines."""

    def __init__(self, log: IO[bytes] | None, screen: Callable[[bytes], None] | None) -> None:
        self._log = log
        self._screen = screen
        self._tail = bytearray()

    def __call__(self, data: bytes) -> None:
        """Record ``data``; called from vCPU threads."""
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        if self._log:
            self._log.write(data)
        if self._screen:
            self._screen(data)

    def tail(self) -> str:
        """The last lines that the guest printed."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:])


def report_failure(outcome: Outcome, recorder: ConsoleRecorder, *, console_shown: bool) -> None:
    """Say on standard error why a run ended, unless it ended as runs should."""
    if outcome.kind in _QUIET:
        return
    say(outcome.reason)
    tail = recorder.tail()
    if not console_shown and tail and outcome.kind is not OutcomeKind.SIGNALLED:
        say(f"the guest's console ended with:\n{tail}")


def json_text(data: bytes) -> dict[str, str]:
    """``data`` for JSON: as text if it is UTF-8, else in base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def run_report(machine: Machine, outcome: Outcome, output: dict[str, bytes]) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    return {
        "status": outcome.status,
        "end": outcome.kind.name.lower(),
        "reason": outcome.reason,
        "kernel": machine.description,
        "assists": machine.traits.needs_assists,
        "timings": {name: round(at, 4) for name, at in machine.timings.marks.items()},
        **{name: json_text(data) for name, data in output.items()},
        **machine.statistics(),
    }
