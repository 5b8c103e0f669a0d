"""``pykvm crash``: records a disk's writes, and tries the power cuts that they allow."""

import argparse
import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import pykvm
from pykvm.cli.disk_keys import parse_disk
from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path
from pykvm.cli.progress import Progress, Stopped, stops_at_signals
from pykvm.cli.say import emit
from pykvm.cli.values import parse_seconds, parse_whole
from pykvm.crash.checks import SECONDS, Check, Survivor, ext4
from pykvm.crash.model import Model, Rules, Tear
from pykvm.crash.recorded import Recorded, Report
from pykvm.crash.states import Cuts
from pykvm.errors import UsageError, shown

SETUP: Final = "mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt && sync"
FAILED: Final = 1
"""The exit status if a check failed."""
_MOST_STATES = 1 << 32
_SHOWN_FAILURES = 5
_SHOWN_WORDS = 200
_MOST_WORDS = 4000
_NOT_RUN = (126, 127)
"""The shell's statuses for a program that it cannot run, and for one that it does not find."""


def run_crash(arguments: Sequence[str]) -> int:
    """Run ``pykvm crash`` and return the exit status."""
    options = parser().parse_args(arguments)
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "record": _record,
        "explore": _explore,
        "replay": _replay,
        "minimise": _minimise,
        "export": _export,
    }
    try:
        with stops_at_signals():
            return actions[options.action](options)
    except Stopped as stopped:
        return 128 + stopped.number


def parser() -> argparse.ArgumentParser:
    """The options of ``pykvm crash``."""
    made = Parser(
        prog="pykvm crash",
        description="Record the writes of a guest's disk, and check the contents that a power cut "
        "could have left.",
        epilog="'pykvm crash ACTION --help' lists the options of each. "
        f"The exit status is {FAILED} if a check failed.",
        allow_abbrev=False,
    )
    actions = made.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (text, add) in _ACTIONS.items():
        one = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("folder", metavar="DIR", type=parse_path, help="the recording")
        add(one.add_argument)
    return made


Add = Callable[..., Any]


def _add_record(add: Add) -> None:
    add("--run", metavar="CMD", required=True, help="the guest's command that is recorded")
    add(
        "--setup",
        metavar="CMD",
        default=SETUP,
        help="the guest's command before; its writes are stable (default: %(default)s)",
    )
    add(
        "--disk",
        metavar="DISK",
        default="blank=16M",
        help="the disk, as for 'pykvm boot' (default: %(default)s)",
    )
    add("--timeout", metavar="S", default="120", help="seconds for each command (default: 120)")


def _add_checks(add: Add) -> None:
    add(
        "--check",
        metavar="CMD",
        action="append",
        default=[],
        help="a command of the host's shell, with the image's path in $IMAGE and the marks before "
        "the cut in $MARKS; a status other than 0 fails; may be repeated",
    )
    add("--no-fsck", action="store_true", help="do not check the ext4 filesystem first")


def _add_explore(add: Add) -> None:
    add("--states", metavar="N", default="1000", help="check at most N states (default: 1000)")
    add("--seed", metavar="N", default="1", help="seed of the random choice (default: 1)")
    add("--model", choices=[one.value for one in Model], default=Model.VIRTIO.value)
    add("--tear", choices=[one.value for one in Tear], default=Tear.BLOCK.value)
    add("--cuts", choices=[one.value for one in Cuts], default=Cuts.FLUSH.value)
    add(
        "--shard",
        metavar="I/N",
        default="1/1",
        help="of N machines, this is number I: check only its part of the states (default: 1/1)",
    )
    _add_checks(add)
    add("--json", action="store_true", help="print one JSON object")


def _add_replay(add: Add) -> None:
    add("id", metavar="ID", help="the state's id, as 'explore' printed it")
    add("--image", metavar="FILE", type=parse_path, help="write the disk in this state to FILE")
    _add_checks(add)


def _add_minimise(add: Add) -> None:
    add("id", metavar="ID", help="the id of a state that fails")
    _add_checks(add)


def _add_export(add: Add) -> None:
    add("file", metavar="FILE", type=parse_path, help="the new file")


_ACTIONS: Final = {
    "record": ("boot a guest, and record the writes of a command in the new DIR", _add_record),
    "explore": ("check states in which a power cut can leave the disk", _add_explore),
    "replay": ("check one state again, and describe it", _add_replay),
    "minimise": ("find the smallest state that fails like this one", _add_minimise),
    "export": ("write the log in the format of dm-log-writes", _add_export),
}


def _record(options: argparse.Namespace) -> int:
    disk, seconds = parse_disk(options.disk), parse_seconds(options.timeout) or math.inf
    if options.folder.exists():
        raise UsageError(f"{shown(str(options.folder))} exists", "give a new folder")
    with pykvm.boot(disks=[disk]) as guest:
        guest.run(options.setup, timeout=seconds)
        with guest.disks[0].record() as recording:
            done = guest.run(options.run, check=False, timeout=seconds)
            recording.mark("end")
            recording.save(options.folder)
            count = len(recording.log.entries) - 1
    emit(
        f"{count} requests are recorded in {shown(str(options.folder))}; "
        f"the command's status is {done.status}\n"
    )
    return 0


def _explore(options: argparse.Namespace) -> int:
    rules = Rules(Model(options.model), Tear(options.tear))
    most = _number("--states", options.states, 1)
    seed = _number("--seed", options.seed, 0)
    progress = Progress()
    try:
        report = Recorded(options.folder).explore(
            _checks(options),
            rules=rules,
            at=Cuts(options.cuts),
            most=most,
            seed=seed,
            shard=_shard(options.shard),
            progress=partial(_show, progress, most),
        )
    finally:
        progress.clear()
    emit(_json(report) if options.json else _text(report, options.folder))
    return FAILED if report.failures else 0


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    made = parse_whole(number) - 1, parse_whole(count)
    if not 0 <= made[0] < made[1]:
        raise UsageError(f"--shard cannot be '{shown(text)}'", "write it like 1/4")
    return made


def _number(option: str, text: str, least: int) -> int:
    number = parse_whole(text)
    if not least <= number < _MOST_STATES:
        raise UsageError(f"{option} cannot be '{shown(text)}'", f"give a number from {least} on")
    return number


def _show(progress: Progress, most: int, report: Report) -> None:
    rate = report.checked / max(report.seconds, 1e-3)
    left = (min(most, report.coverage.legal) - report.checked) / max(rate, 1e-3)
    progress(
        f"{report.checked} states checked, {len(report.failures)} failed, "
        f"{rate:.0f} a second, at most {left:.0f} s left"
    )


def _text(report: Report, folder: object) -> str:
    lines = str(report).splitlines()[:1]
    for failure in report.failures[:_SHOWN_FAILURES]:
        lines.append(f"{failure.id}\n    {shown(failure.reason, most=_SHOWN_WORDS)}")
    hidden = len(report.failures) - _SHOWN_FAILURES
    if hidden > 0:
        lines.append(f"and {hidden} more, which --json lists")
    if report.failures:
        first = report.failures[0].id
        lines.append(f"the smallest: pykvm crash minimise {shown(str(folder))} {first}")
    return "\n".join(lines) + "\n"


def _json(report: Report) -> str:
    made = {
        "checked": report.checked,
        "seconds": round(report.seconds, 3),
        "legal": report.coverage.legal if report.coverage.legal < 1 << 53 else None,
        "legal_log2": round(math.log2(report.coverage.legal), 2),
        "complete": report.coverage.complete,
        "failures": [{"id": one.id, "reason": one.reason} for one in report.failures],
    }
    return json.dumps(made, indent=2) + "\n"


def _replay(options: argparse.Namespace) -> int:
    recorded = Recorded(options.folder)
    lines = recorded.describe(options.id)
    problem = recorded.problem(options.id, _checks(options))
    if options.image is not None:
        recorded.write_image(options.id, options.image)
    emit("\n".join([*lines, shown(problem) if problem else "all checks pass"]) + "\n")
    return FAILED if problem else 0


def _minimise(options: argparse.Namespace) -> int:
    checks = _checks(options)
    recorded = Recorded(options.folder)
    state = recorded.minimise(options.id, checks)
    lines = [state.id, *recorded.describe(state.id), shown(recorded.problem(state.id, checks))]
    emit("\n".join(lines) + "\n")
    return FAILED


def _export(options: argparse.Namespace) -> int:
    Recorded(options.folder).export(options.file)
    return 0


def _checks(options: argparse.Namespace) -> list[Check]:
    checks: list[Check] = [] if options.no_fsck else [ext4]
    checks += [partial(_command, command) for command in options.check]
    if not checks:
        raise UsageError("there is nothing to check", "give --check, or leave out --no-fsck")
    return checks


def _command(command: str, survivor: Survivor) -> None:
    """The check of ``--check``."""
    environment = {**os.environ, "IMAGE": survivor.path, "MARKS": "\n".join(survivor.marks)}
    # Debian's ordinary users do not have the folder of debugfs there.
    environment["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command,
            shell=True,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"'{command}' did not end within {SECONDS:.0f} s") from None
    if done.returncode in _NOT_RUN:
        raise UsageError(f"'{shown(command)}' cannot be run by the shell", "try it by hand")
    if done.returncode:
        words = " ".join(done.stdout.decode("utf-8", "replace").split())[:_MOST_WORDS]
        raise AssertionError(f"'{command}' ended with status {done.returncode}: {words}")
