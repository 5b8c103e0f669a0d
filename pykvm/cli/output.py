"""What a run leaves behind for people: the console's log and tail, the failure, the JSON report."""

import base64
import json
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

from pykvm.cli.say import STDERR, put, say
from pykvm.cli.streams import OutputWriter
from pykvm.devices.virtio_blk.stats import classic_line
from pykvm.errors import PykvmError, UsageError
from pykvm.machine.machine import Machine
from pykvm.platform.outcome import Outcome, OutcomeKind

TAIL_BYTES = 16 << 10
TAIL_LINES = 20
_QUIET = (OutcomeKind.POWER_OFF, OutcomeKind.RESET, OutcomeKind.HALTED, OutcomeKind.QUIT)


def open_output(path: Path, option: str) -> IO[bytes]:
    """``path`` open for writing and empty; UsageError, which names ``option``."""
    try:
        return open(path, "wb", buffering=0)
    except OSError as error:
        hint = "give a file that can be written"
        raise UsageError(f"{option} {path}: {_reason(error)}", hint) from None


def _reason(error: OSError) -> str:
    return (error.strerror or "").lower()


class ConsoleLog:
    """The file of ``--console-log``: a context that closes it.

    A log that cannot be written is no reason to end a guest's run: it ends
    there, and :attr:`problem` says so, to be said when the run is over.
    """

    def __init__(self, path: Path) -> None:
        self.problem = ""
        self._path = path
        self._owned = ExitStack()
        file = self._owned.enter_context(open_output(path, "--console-log"))
        writer = OutputWriter(file.fileno(), self._failed)
        self._owned.enter_context(writer)
        self.write: Callable[[bytes], None] = writer.write
        self.release: Callable[[], None] = writer.release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def _failed(self, error: OSError) -> None:
        self.problem = f"the console log {self._path} is not complete: {_reason(error)}"


class ConsoleRecorder:
    """Takes the guest's console to some sinks, and keeps its last lines."""

    def __init__(self, *sinks: Callable[[bytes], None]) -> None:
        self._sinks = sinks
        self._tail = bytearray()

    def __call__(self, data: bytes) -> None:
        """Record ``data``; called from vCPU threads."""
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        for sink in self._sinks:
            sink(data)

    def say_tail(self) -> None:
        """Show the last lines that the guest printed, if there are any."""
        lines = self._tail.decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        if lines:
            text = "\n".join(f"  | {line}" for line in lines)
            say(f"the guest's console ended with:\n{text}")


def say_reason(outcome: Outcome) -> None:
    """Say why a run ended, unless it ended as runs should.

    A reader of our output that had enough (SIGPIPE) is no failure either.
    """
    if outcome.kind not in _QUIET and outcome.status != 128 + signal.SIGPIPE:
        say(outcome.reason)


def print_statistics(machine: Machine) -> None:
    """``--stats -``: one line per disk to standard error; PykvmError if that fails."""
    disks = machine.statistics()["disks"]
    try:
        put(STDERR, "".join(f"{classic_line(disk['device'], disk)}\n" for disk in disks))
    except OSError as error:
        raise PykvmError(f"--stats -: {_reason(error)}", "give a file") from None


def write_statistics(file: IO[bytes], machine: Machine) -> None:
    """Write the object of ``--stats``; PykvmError if that fails."""
    data = memoryview(json.dumps(machine.statistics(), indent=2).encode() + b"\n")
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise PykvmError(f"--stats {file.name}: {_reason(error)}", "give another file") from None


def json_text(data: bytes) -> dict[str, str]:
    """``data`` for JSON: as text if it is UTF-8, else in base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def run_report(
    machine: Machine,
    outcome: Outcome,
    output: dict[str, bytes],
    sandbox: dict[str, str] | None,
) -> dict[str, Any]:
    """The object that ``--json`` prints; docs/reference/cli.md describes it."""
    return {
        "status": outcome.status,
        "end": outcome.kind.name.lower(),
        "reason": outcome.reason,
        "kernel": machine.description,
        "assists": machine.traits.needs_assists,
        "sandbox": sandbox,
        "timings": {name: round(at, 4) for name, at in machine.timings.marks.items()},
        **{name: json_text(data) for name, data in output.items()},
        **machine.statistics(),
    }
