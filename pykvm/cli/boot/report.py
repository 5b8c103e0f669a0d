"""The output of ``--stats`` and ``--json``. Imported only for runs with one of these options."""

import base64
import json  # noqa: F401 - json_text needs it after the sandbox has closed
from typing import Any

from pykvm.cli.process import signals_go_to
from pykvm.cli.say import STDERR, emit, put
from pykvm.devices.virtio_blk.observe.stats import classic_line
from pykvm.errors import PykvmError, reason_of
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome
from pykvm.names import json_text
from pykvm.outputs import Output


class Report:
    """Writes the reports that the user asked for. Create it before the run."""

    def __init__(self, *, stats: str | None, file: Output | None, as_json: bool) -> None:
        """``stats`` is the value of ``--stats``: a path, open as ``file``; "-"; or None."""
        self._stats = stats
        self._as_json = as_json
        self._file = file

    def write(self, machine: Machine) -> None:
        """``--stats FILE``: write the object; PykvmError if that fails or a signal ends it."""
        if self._file is None:
            return
        try:
            with signals_go_to(_cut_short):
                put(self._file.fd, json_text(machine.statistics(), indent=2) + "\n")
        except OSError as error:
            where = f"--stats {self._stats}"
            raise PykvmError(f"{where}: {reason_of(error)}", "give a different file") from None

    def print_statistics(self, machine: Machine) -> None:
        """``--stats -``: print one line per disk on standard error; PykvmError if that fails."""
        if self._stats != "-":
            return
        disks = machine.statistics()["disks"]
        try:
            put(STDERR, "".join(f"{classic_line(disk['device'], disk)}\n" for disk in disks))
        except OSError as error:
            raise PykvmError(f"--stats -: {reason_of(error)}", "give a file") from None

    def print_json(
        self,
        machine: Machine,
        outcome: Outcome,
        output: dict[str, bytes],
        sandbox: dict[str, str] | None,
    ) -> None:
        """``--json``: print the object about the run; PykvmError if that fails."""
        if self._as_json:
            emit(json_text(_run_report(machine, outcome, output, sandbox)) + "\n")


def _cut_short(number: int) -> None:
    """Signal ``number`` ends the writing of statistics, which may wait for a pipe's reader."""
    ended = Outcome.signalled(number)
    error = PykvmError(f"the statistics are not complete: {ended.reason}")
    error.exit_status = ended.status
    raise error


def _json_text(data: bytes) -> dict[str, str]:
    """``data`` as JSON: text if it is UTF-8, else base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _run_report(
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
        "memory": {
            "size": machine.memory.size,
            "shared": machine.config.shared_memory,
            "large_pages": machine.memory.large_pages,
        },
        "sandbox": sandbox,
        "timings": {name: round(at, 4) for name, at in machine.timings.marks.items()},
        **{name: _json_text(data) for name, data in output.items()},
        **machine.statistics(),
    }
