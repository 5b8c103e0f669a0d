"""Runs fio in a guest, and reads the disks' counters meanwhile."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pykvm.bench.fio.device import Reading
from pykvm.bench.fio.figures import FioOutput, parse_output
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.errors import PykvmError, UsageError, shown
from pykvm.guest.errors import GuestDied, GuestError, GuestTimeout
from pykvm.guest.guest import Guest
from pykvm.guest.process import Process
from pykvm.machine.outcome import OutcomeKind
from pykvm.machine.run_state import RunState

FOLDER = "/tmp/pykvm-bench"
_JOB = f"{FOLDER}/job.fio"
_OUTPUT = f"{FOLDER}/output.json"
_READ_SECONDS = 0.05
"""The time between two readings of the counters."""


class FioFailed(PykvmError):
    """fio reported an error. ``words`` are its own about that, in lines.

    ``json`` is its JSON output, if there is one.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str, words: str, json: str = "") -> None:
        super().__init__(message, hint)
        self.words = words
        self.json = json


@dataclass(frozen=True, slots=True)
class FioRun:
    """fio's output, and readings of the counters from before its start until after its end."""

    output: FioOutput
    readings: Sequence[Reading]


def prepare(guest: Guest, job: str, files: Mapping[str, bytes]) -> None:
    """Put the job file ``job`` and the ``files`` that it names into the guest.

    UsageError if the guest has no fio.
    """
    found = guest.run(f"mkdir -p {FOLDER} && command -v fio", check=False)
    if found.status:
        raise UsageError(
            "the guest has no fio",
            "add fio to its ramdisk, statically linked, or use pykvm's own guest: leave out "
            "--guest and --kernel",
        )
    for name, content in {"job.fio": job.encode(), **files}.items():
        guest.push(content, f"{FOLDER}/{name}")


def run_fio(
    guest: Guest, progress: Callable[[str], None] | None, *, may_write: bool, name: str = "fio"
) -> FioRun:
    """Run fio with the job file of :func:`prepare`.

    ``progress`` gets fio's own lines about its progress, and may be called by a different thread.
    FioFailed if fio reports an error, and PykvmError if a disk's error stops the guest. GuestDied.
    """
    command = ["fio", "--output-format=json", f"--output={_OUTPUT}"]
    command += ["--eta=always", "--eta-newline=1"] if progress else ["--eta=never"]
    command += [] if may_write else ["--readonly"]
    with guest.popen([*command, _JOB], cwd=FOLDER) as process:
        watcher = _follow(process, progress)
        readings = _readings(guest, process)
        result = process.wait(math.inf, check=False)
        if watcher:
            watcher.join()
    words = (result.stderr + result.stdout).decode("utf-8", "replace").strip()
    try:
        output = parse_output(guest.pull(_OUTPUT).decode("utf-8", "replace"))
    except GuestDied:
        raise
    except (GuestError, ValueError):
        raise FioFailed(
            f"fio did not accept {name}: it ended with status {result.status}",
            "'fio --enghelp' and 'fio --cmdhelp' list its engines and options",
            words,
        ) from None
    if output.errors or result.status:
        text = "\n".join(dict.fromkeys(f"{output.notes}\n{words}".strip().splitlines()))
        message = f"fio reported an error in {name}{_which(output)}"
        raise FioFailed(message, "", text, output.json)
    return FioRun(output, readings)


def _which(output: FioOutput) -> str:
    failed = [f"job '{shown(job)}' error {number}" for job, number in output.errors.items()]
    return f" ({', '.join(failed)})" if failed else ""


def _follow(process: Process, progress: Callable[[str], None] | None) -> threading.Thread | None:
    if progress is None:
        return None

    def follow() -> None:
        try:
            while line := process.stdout.readline(math.inf):
                progress(line.decode("utf-8", "replace").strip())
        except (GuestError, GuestTimeout):
            pass  # the wait for the process tells

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    return watcher


def _readings(guest: Guest, process: Process) -> list[Reading]:
    """The readings until ``process`` ends; of equal ones, only the first and the last."""
    found = [reading(guest)]
    while process.status is None and guest.outcome is None:
        time.sleep(_READ_SECONDS)
        now = reading(guest)
        if _moved(now) == _moved(found[-1]) and len(found) > 1:
            found[-1] = now
        else:
            found.append(now)
        _check_running(guest)
    return found


def _moved(one: Reading) -> tuple[int, int]:
    return one.stats.rd_bytes, one.stats.wr_bytes


def reading(guest: Guest) -> Reading:
    """The counters now."""
    disks = guest.disks
    return Reading(
        Stats.total([disk.stats for disk in disks]),
        sum(disk.notifications for disk in disks),
        sum(guest.machine.statistics()["exits"].values()),
    )


def _check_running(guest: Guest) -> None:
    """PykvmError if a disk's error has stopped the guest."""
    if guest.machine.status is not RunState.IO_ERROR:
        return
    for disk in guest.disks:
        if disk.last_error is not None:
            raise PykvmError(
                f"{disk.name} stopped the guest: {disk.last_error}",
                "make room, or give the disk werror=report and rerror=report",
            )


def died(error: GuestDied) -> PykvmError:
    """The error of the command line for a guest that died. Its exit status is 126 for a panic."""
    found = PykvmError(error.message)
    if error.outcome.kind in (OutcomeKind.PANIC, OutcomeKind.TRIPLE_FAULT):
        found.exit_status = error.outcome.status
    return found
