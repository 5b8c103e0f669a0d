"""A guest in the report of a test that failed: its end, console, kernel, commands and disks."""

import errno as errnos
import json
import shlex
import sys
from pathlib import Path
from typing import Any, Final

from pykvm.devices.virtio_blk.layers.fault_rules import Fault
from pykvm.errors import shown
from pykvm.guest.errors import GuestDied, GuestError
from pykvm.guest.result import command_text
from pykvm.machine.bundle import BUNDLED
from pykvm.machine.disks import Disk
from pykvm.machine.run_state import RunState
from pykvm.machine.snapshot import disk_option
from pykvm.pytest_plugin.artefacts import Artefacts, trace_text
from pykvm.pytest_plugin.kernel_reports import kernel_reports
from pykvm.pytest_plugin.watched import Watched
from pykvm.trace import events

_MOST_LINES: Final = 100
_MOST_REQUESTS: Final = 20
_LOG_SECONDS: Final = 10.0
_ANSWERS: Final = (events.DONE, events.REFUSE, events.ANSWER)


class GuestReport:
    """All about a guest of a test, as it was when the test ended.

    The kernel's log is asked for only if ``failed``, because the guest takes long to tell it.
    """

    def __init__(self, watched: Watched, failed: bool) -> None:
        guest = watched.guest
        self._watched = watched
        self.outcome = outcome_text(watched)
        self.console = guest.console.text
        self.log = _log(watched) if failed else ""
        self.kernel = [
            f"{report.kind}: {shown(report.line)}"
            for report in [*watched.reports, *kernel_reports(self.console, self.log)]
        ]
        self.commands = [_command_line(process) for process in watched.commands]
        self.disks = [(disk, _disk_lines(disk, watched)) for disk in guest.disks]

    def sections(self, name: str) -> list[tuple[str, str]]:
        """Titles and texts for the report of the test; ``name`` is the guest's."""
        found = [
            (name, self.outcome),
            (f"{name}: reports of its kernel", "\n".join(self.kernel)),
            (f"{name}: commands", _last(self.commands)),
            (f"{name}: console since the test began", _last(self.console.rstrip().splitlines())),
        ]
        found += [(f"{name}: disk {disk.name}", "\n".join(lines)) for disk, lines in self.disks]
        return [(f"pykvm {title}", text) for title, text in found if text]

    def write(self, artefacts: Artefacts, prefix: str) -> None:
        """Write the files; the names begin with ``prefix``. UsageError."""
        disks = [disk for disk, _ in self.disks]
        artefacts.write(f"{prefix}console.txt", self.console)
        artefacts.write(f"{prefix}dmesg.txt", self.log)
        artefacts.write(f"{prefix}commands.txt", "".join(f"{line}\n" for line in self.commands))
        if disks:
            statistics = [disk.statistics() for disk in disks]
            artefacts.write(f"{prefix}disks.json", json.dumps(statistics, indent=2) + "\n")

    def write_trace(self, artefacts: Artefacts, prefix: str) -> None:
        """Write the trace, if there is one, in the same way."""
        if (trace := self._watched.trace) is not None:
            artefacts.write(f"{prefix}trace.jsonl", trace_text(trace, self._watched.guest.disks))


def outcome_text(watched: Watched) -> str:
    """How the guest is, in a sentence."""
    machine = watched.guest.machine
    if (outcome := machine.outcome) is not None:
        return GuestDied(outcome, "").message
    if machine.status is RunState.IO_ERROR:
        errors = [disk.last_error for disk in machine.disks if disk.io_status.value != "ok"]
        error = errors[0] if errors else None
        reason = error and f": {error.operation}, sector {error.sector}, {_error(error.errno)}"
        return f"an I/O error has stopped the guest{reason or ''}"
    return "the guest is paused" if machine.status is RunState.PAUSED else "the guest runs"


def _log(watched: Watched) -> str:
    """The messages of the kernel, if the guest can tell them."""
    guest = watched.guest
    if guest.machine.status is not RunState.RUNNING or not guest.machine.config.agent:
        return ""
    try:
        return guest.dmesg(timeout=_LOG_SECONDS)
    except GuestError:  # it may hang, which is the reason for the test's failure
        return ""


def _command_line(process: Any) -> str:
    status = process.status
    ended = "no status" if status is None else f"status {status}"
    return f"{process.seconds:8.3f} s  {ended:<10}  {command_text(process.command)}"


def _disk_lines(disk: Disk, watched: Watched) -> list[str]:
    stats = disk.stats
    lines = [
        f"{shown(disk.config.name)}: {stats.rd_operations} reads, {stats.wr_operations} writes, "
        f"{stats.flush_operations} flushes; failed: {stats.failed_rd_operations} reads, "
        f"{stats.failed_wr_operations} writes, {stats.failed_flush_operations} flushes"
    ]
    for rule in disk.faults.rules:
        if rule.strikes:
            lines.append(
                f"struck {rule.strikes} of {rule.matches} matches: {_fault_text(rule.fault)}"
            )
    if watched.trace is not None:
        requests = [
            event
            for event in watched.trace
            if event["disk"] == disk.name and event["event"] in (*_ANSWERS, events.ERROR)
        ]
        if requests:
            lines.append("the last requests, with the seconds since the test began:")
            lines += [_request_line(event, watched.began) for event in requests[-_MOST_REQUESTS:]]
    return lines


def _fault_text(fault: Fault) -> str:
    default = Fault(errno="EIO")
    names = ("operation", "sectors", "nth", "count", "probability", "short", "delay_ms", "call")
    changed = {name: getattr(fault, name) for name in names}
    parts = [
        f"{name}={value!r}" for name, value in changed.items() if value != getattr(default, name)
    ]
    parts += [f"errno={fault.errno!r}"] if fault.errno else []
    return shown(f"Fault({', '.join(parts)})")


def _request_line(event: dict[str, Any], began: int) -> str:
    seconds = (event["ns"] - began) / 1e9
    place = f"sector {event['sector']}, {event['length']} bytes" if event.get("length") else ""
    number = event.get("errno", 0)
    if event["event"] == events.ERROR:
        end = f"the host failed: {_error(number)}; policy: {event['action']}"
    else:
        took = f" in {event['took_ns'] / 1000:.0f} µs" if "took_ns" in event else ""
        end = f"{event['status']}{took}"
    return f"{seconds:9.3f}  {event['kind']:<12} {place:<30} {end}"


def _error(number: int) -> str:
    return errnos.errorcode.get(number, f"error {number}")


def _last(lines: list[str]) -> str:
    """The last of ``lines``, printable."""
    left_out = len(lines) - _MOST_LINES
    head = [f"… {left_out} lines before are in the file"] if left_out > 0 else []
    return shown("\n".join(head + lines[-_MOST_LINES:]), keep="\n\t")


def shell_command(folder: Path, watched: Watched) -> str:
    """The command that opens a shell in the guest that was saved in ``folder``."""
    config = watched.guest.machine.config
    words = [sys.executable, "-m", "pykvm", "snapshot", "restore", str(folder)]
    if config.guest not in (None, BUNDLED):
        words.append(str(config.guest))
    for option, value in (("--kernel", config.kernel), ("--append", config.append)):
        words += [option, str(value)] if value else []
    if isinstance(config.initrd, bytes):
        return f"{shlex.join(words)} --initrd FILE, which was given as bytes"
    words += ["--initrd", str(config.initrd)] if config.initrd else []
    if any(disk.path for disk in config.disks):
        for disk in config.disks:
            words += ["--disk", disk_option(disk)]
    return shlex.join(words)
