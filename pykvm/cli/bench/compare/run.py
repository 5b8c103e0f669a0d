"""``pykvm bench compare``: one load under several configurations of a disk, in turns."""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from pykvm.bench.compare.report import Sample, chart_of, text_of
from pykvm.bench.compare.stream import BLOCK, DISK_BLOCKS, STREAMS
from pykvm.bench.disk.tools.pykvm_tool import form
from pykvm.bench.fio.in_guest import FioFailed, died
from pykvm.bench.fio.report import EMULATED
from pykvm.bench.image import MIB, settle, size_of
from pykvm.cli.bench.compare.options import BARE, parser, variants
from pykvm.cli.bench.disk.options import parse_number
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
from pykvm.cli.values import split_options
from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import PykvmError, UsageError, reason_of, shown
from pykvm.guest.errors import GuestDied
from pykvm.machine.bundle import BUNDLED
from pykvm.outputs import Output, Outputs
from pykvm.suggest import did_you_mean

_RUNS_MAX = 100
FSYNCS, EMULATED_FSYNCS = 2000, 60
"""The writes of each job of the load ``fsync`` in Linux, and where its kernel is emulated."""
Load = Callable[[DiskConfig], Sample]
"""Runs the load once on a disk."""


def run_compare(arguments: Sequence[str]) -> int:
    """Run ``pykvm bench compare`` and return the exit status."""
    options = parser().parse_args(arguments)
    repeat = parse_number(options.repeat, "--repeat", 1, _RUNS_MAX)
    labels = variants(options.vary)
    progress = Progress()
    try:
        with ExitStack() as stack:
            stack.enter_context(stops_at_signals())
            stack.callback(progress.clear)
            emulated = is_emulated()
            bare = is_bare(options, emulated)
            outputs = _outputs(stack, options)
            disk = _Disk(stack, options, emulated, bare, progress)
            for label in labels:
                disk.config(label)
            load = (_bare_load if bare else _linux_load)(options, emulated, disk, labels, progress)
            runs: dict[str, list[Sample]] = {label: [] for label in labels}
            try:
                for number in range(repeat):
                    for label in labels:
                        progress(f"round {number + 1} of {repeat}: {label}")
                        disk.settle(label)
                        runs[label].append(load(disk.config(label)))
            finally:
                # An error or Ctrl-C loses no round that has ended.
                progress.clear()
                rounds = min(len(samples) for samples in runs.values())
                ended = {label: samples[:rounds] for label, samples in runs.items()}
                if rounds:
                    _write(outputs, ended, options, BARE if bare else "linux")
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
    emit(text_of(runs, shown(options.load), EMULATED if emulated and not bare else ""))
    return 0


def is_bare(options: argparse.Namespace, emulated: bool) -> bool:
    """Whether the bare-metal guest sends the load; UsageError if it cannot."""
    stream = options.load in STREAMS
    if options.guest == BARE and not stream:
        raise UsageError(
            f"the bare-metal guest has no load '{options.load}'",
            f"use {', '.join(STREAMS)}, or leave --guest out",
        )
    chosen = options.guest is not None or options.kernel is not None
    bare = bool(options.guest == BARE if chosen else stream and emulated)
    given = [option for option, is_given in _of_linux(options).items() if is_given]
    if bare and given:
        raise UsageError(
            f"{given[0]} is for a Linux guest, and the bare-metal guest sends this load",
            "leave it out, or give --guest guest",
        )
    return bare


def _of_linux(options: argparse.Namespace) -> dict[str, bool]:
    """The options that the bare-metal guest does not have, and whether they are given."""
    return {
        "--kernel": options.kernel is not None,
        "--memory": options.memory is not None,
        "--cpus": options.cpus != "1",
        "--guest-merging": options.guest_merging != "on",
    }


class _Disk:
    """The disk in each of its configurations."""

    def __init__(
        self,
        stack: ExitStack,
        options: argparse.Namespace,
        emulated: bool,
        bare: bool,
        progress: Progress,
    ) -> None:
        needed = DISK_BLOCKS * BLOCK if bare else 0
        text = options.disk
        size = options.disk_size
        if size is None and bare and (not text or _is_folder(text)):
            size = f"{needed >> 10}K"
        (config,) = disks_of(stack, [text] if text else [], size, emulated, progress)
        _, *keys = split_options(text) if text else ("",)
        self._keys = "".join(f",{key.replace(',', ',,')}" for key in keys)
        self._temporary = Path(config.path) if not text or _is_folder(text) else None
        if config.blank:
            self._path, self.size = split_options(text)[0], config.blank
        else:
            path = str(config.path)
            self._path, self.size = path.replace(",", ",,"), size_of(Path(path))
            if self._temporary is None and not keeps_image(config):
                self._keys += ",snapshot=on"  # each run begins with the same content
        if self.size < needed:
            raise UsageError(
                f"the disk has {self.size // MIB} MiB, and the load needs {needed // MIB}",
                "give --disk a larger one",
            )

    @property
    def keeps(self) -> bool:
        """Whether the disk has the next guest's content of the last one."""
        return self._temporary is not None

    def config(self, label: str) -> DiskConfig:
        """The disk in the configuration ``label``; UsageError."""
        return parse_disk(f"{self._path}{self._keys},{label}")

    def settle(self, label: str) -> None:
        """Give each run the same start: nothing to write back, and the file in the page cache."""
        if self._temporary is not None:
            settle(self._temporary, self.size, self.config(label).cache)


def _is_folder(text: str) -> bool:
    return Path(split_options(text)[0]).is_dir()


def _bare_load(
    options: argparse.Namespace,
    emulated: bool,
    disk: _Disk,
    labels: Sequence[str],
    progress: Progress,
) -> Load:
    # A comparison with Linux needs neither the bare-metal guest nor its compiler.
    from pykvm.bench.compare.replay import Replay
    from pykvm.bench.disk.session import guest_tsc_khz

    _refuse_settings(options)
    progress("building the load")
    return Replay(STREAMS[options.load](), guest_tsc_khz()).run


def _linux_load(
    options: argparse.Namespace,
    emulated: bool,
    disk: _Disk,
    labels: Sequence[str],
    progress: Progress,
) -> Load:
    from pykvm.bench.compare.linux_load import EMULATED_SIZE, LOADS, SIZE, fio_load
    from pykvm.cli.bench.fio.options import jobs_of
    from pykvm.cli.bench.fio.options import parser as fio_parser

    options.guest = options.guest or BUNDLED
    size = EMULATED_SIZE if emulated else SIZE
    named = LOADS.get(options.load)
    if named is not None:
        _refuse_settings(options)
    jobs = (
        None
        if named
        else jobs_of(fio_parser().parse_args(_fio_words(options, emulated)), 1, emulated)
    )

    def run(config: DiskConfig) -> Sample:
        with ExitStack() as stack:
            guest = start_guest(stack, guest_config(options, [config]), lambda text: None)
            if options.guest_merging == "off":
                unmerged(guest)
            if named is not None:
                return named(guest, size)
            assert jobs is not None
            return fio_load(guest, jobs.text, jobs.files, write=jobs.write, name=jobs.name)

    if options.load == "boot":
        if not disk.keeps:
            raise UsageError(
                "the load 'boot' reads what 'install' has written, and this disk forgets it",
                "leave --disk out, or give it a folder for a temporary file",
            )
        progress("installing")
        with ExitStack() as stack:
            config = guest_config(options, [disk.config(labels[0])])
            LOADS["install"](start_guest(stack, config, progress), size)
    return run


def _fio_words(options: argparse.Namespace, emulated: bool) -> list[str]:
    """The load as options of ``bench fio``; UsageError."""
    settings = [word for text in options.set for word in ("--set", text)]
    if options.load == "fsync":
        # A number of writes, so that the time tells.
        count = EMULATED_FSYNCS if emulated else FSYNCS
        ends = ["--set", "time_based=0", "--set", "runtime=0", "--set", f"number_ios={count}"]
        return ["--preset", "fsync", *ends, *settings]
    if not Path(options.load).exists():
        loads = f"use {', '.join(STREAMS)}, or the path of a job file of fio"
        hint = did_you_mean(options.load, STREAMS, loads)
        raise UsageError(f"there is no load '{options.load}'", hint)
    return [options.load, *settings]


def _refuse_settings(options: argparse.Namespace) -> None:
    if options.set:
        raise UsageError(
            f"--set applies to jobs of fio, and the load '{options.load}' has none",
            "leave it out, or give --load a job file",
        )


def _outputs(stack: ExitStack, options: argparse.Namespace) -> dict[str, Output]:
    inputs = [options.load] if options.load not in STREAMS else []
    if options.disk:
        inputs.append(split_options(options.disk)[0])
    outputs = stack.enter_context(Outputs(inputs))
    outputs.check_streams()
    return {
        name: outputs.open(path, name)
        for name, path in (("--json", options.json), ("--chart", options.chart))
        if path is not None
    }


def _write(
    outputs: dict[str, Output],
    runs: dict[str, list[Sample]],
    options: argparse.Namespace,
    guest: str,
) -> None:
    found = {
        "load": options.load,
        "guest": guest,
        "form": form(),
        "configurations": [
            {"options": label, "samples": [asdict(sample) for sample in samples]}
            for label, samples in runs.items()
        ],
    }
    for option, output in outputs.items():
        text = (
            json.dumps(found) + "\n" if option == "--json" else chart_of(runs, shown(options.load))
        )
        try:
            output.begin()
            put(output.fd, text)
        except OSError as error:
            raise PykvmError(f"{option}: {reason_of(error)}", "give a different file") from None
