"""``pykvm bench fio``: measures disks with fio in a Linux guest."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pykvm.bench.disk.tools.pykvm_tool import form
from pykvm.bench.fio.device import between
from pykvm.bench.fio.figures import FioOutput, parse_output, progress_of
from pykvm.bench.fio.in_guest import FioFailed, FioRun, died, prepare
from pykvm.bench.fio.in_guest import run_fio as run_in_guest
from pykvm.bench.fio.report import text_of
from pykvm.cli.bench.disk.options import parse_number
from pykvm.cli.bench.fio.options import Jobs, jobs_of, parser
from pykvm.cli.bench.linux_guest import (
    disks_of,
    guest_config,
    is_emulated,
    keeps_image,
    start_guest,
    unmerged,
)
from pykvm.cli.disk_keys import parse_disk
from pykvm.cli.progress import Progress, Stopped, stops_at_signals
from pykvm.cli.say import emit, put, say
from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import PykvmError, UsageError, reason_of, shown
from pykvm.guest.errors import GuestDied
from pykvm.outputs import Output, Outputs

_RUNS_MAX = 100


def run_fio(arguments: Sequence[str]) -> int:
    """Run ``pykvm bench fio`` and return the exit status."""
    options = parser().parse_args(arguments)
    repeat = parse_number(options.repeat, "--repeat", 1, _RUNS_MAX)
    given = [parse_disk(text) for text in options.disk]
    old = [_earlier(path) for path in options.compare]
    progress = Progress()
    try:
        with ExitStack() as stack:
            stack.enter_context(stops_at_signals())
            stack.callback(progress.clear)
            emulated = is_emulated()
            jobs = jobs_of(options, len(given) or 1, emulated)
            _check_overwrite(jobs, given, options)
            outputs = _outputs(stack, options, given, repeat)
            disks = disks_of(stack, options.disk, options.disk_size, emulated, progress)
            files = outputs.get("--json", [])
            runs = _measure(stack, options, jobs, disks, repeat, files, progress)
            progress.clear()
            if options.chart is not None:
                from pykvm.bench.fio.chart import chart_of

                _write("--chart", outputs["--chart"][0], chart_of(runs, f" ({form()})"))
    except Stopped as stopped:
        return 128 + stopped.number
    except FioFailed as error:
        if error.words:
            say(f"fio's messages:\n{error.words}")
        raise
    except GuestDied as error:
        if error.console:
            say(f"the console's last lines:\n{error.console}")
        raise died(error) from None
    emit(text_of(runs, old, emulated, histogram=options.histogram))
    return 0


def _measure(
    stack: ExitStack,
    options: argparse.Namespace,
    jobs: Jobs,
    disks: Sequence[DiskConfig],
    repeat: int,
    files: Sequence[Output],
    progress: Progress,
) -> list[FioRun]:
    """Run the jobs ``repeat`` times. The JSON output of each run goes to its file at once."""
    guest = start_guest(stack, guest_config(options, disks), progress)
    prepare(guest, jobs.text, jobs.files)
    if options.guest_merging == "off":
        unmerged(guest)
    runs = []
    for number in range(1, repeat + 1):
        begin = f"run {number} of {repeat}: " if repeat > 1 else ""
        progress(f"{begin}fio starts")
        show = partial(_show, progress, begin) if progress.shown else None
        text = ""
        try:
            runs.append(run_in_guest(guest, show, may_write=jobs.write, name=jobs.name))
            text = runs[-1].output.json
        except FioFailed as error:
            text = error.json
            raise
        finally:
            progress.clear()
            if files and text:
                _write("--json", files[number - 1], text)
    if not any(sum(job.requests for job in run.output.jobs) for run in runs):
        raise PykvmError(
            f"fio sent no request in {jobs.name}",
            "look at the sizes of its jobs: perhaps the disk is too small for them",
        )
    if not any(between(run.readings[0], run.readings[-1]).services for run in runs):
        raise UsageError(
            f"{jobs.name} sent no request to a disk: its files are in the guest's memory",
            "give --set filename=/dev/vda",
        )
    return runs


def _show(progress: Progress, begin: str, line: str) -> None:
    """Show the progress that fio's ``line`` tells."""
    if text := progress_of(line):
        progress(begin + shown(text))


def _check_overwrite(jobs: Jobs, disks: Sequence[DiskConfig], options: argparse.Namespace) -> None:
    if options.overwrite or not jobs.write:
        return
    for config in disks:
        if not keeps_image(config) and not Path(config.path).is_dir():
            raise UsageError(
                f"{jobs.name} would overwrite '{config.path}'",
                "give --overwrite to allow that, or the disk snapshot=on to drop the writes",
            )


def _outputs(
    stack: ExitStack, options: argparse.Namespace, disks: Sequence[DiskConfig], repeat: int
) -> dict[str, list[Output]]:
    """The open files of --json and --chart; UsageError."""
    inputs = [*options.compare, *([options.job] if options.job else [])]
    inputs += [Path(config.path) for config in disks if not config.blank]
    outputs = stack.enter_context(Outputs(inputs))
    outputs.check_streams()
    found: dict[str, list[Output]] = {}
    if options.json is not None:
        names = [options.json]
        if repeat > 1:
            names = [_numbered(options.json, number) for number in range(1, repeat + 1)]
        found["--json"] = [outputs.open(name, "--json") for name in names]
    if options.chart is not None:
        found["--chart"] = [outputs.open(options.chart, "--chart")]
    return found


def _numbered(path: Path, number: int) -> Path:
    """``out.1.json`` for ``out.json``."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def _write(option: str, output: Output, text: str) -> None:
    try:
        output.begin()
        put(output.fd, text)
    except OSError as error:
        raise PykvmError(f"{option}: {reason_of(error)}", "give a different file") from None


def _earlier(path: Path) -> FioOutput:
    """fio's JSON output in ``path``; UsageError."""
    try:
        return parse_output(os.fsdecode(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"--compare {path}: {reason_of(error)}", "check its path") from None
    except ValueError:
        raise UsageError(
            f"--compare {path} is not fio's JSON output", "give a file that --json has written"
        ) from None
