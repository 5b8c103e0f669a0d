"""The options of ``pykvm bench fio``, and the job file that they describe."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pykvm.bench.fio.job_file import (
    PRESETS,
    has_jobs,
    job_text,
    may_write,
    named_files,
    preset_job,
    with_settings,
)
from pykvm.cli.bench.linux_guest import add_guest_options
from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path
from pykvm.errors import UsageError, reason_of
from pykvm.suggest import did_you_mean

DEFAULT_PRESET = "ssd-test"
_SECONDS, _EMULATED_SECONDS = 10, 5
_SHORT = {
    "rw": "rw",
    "bs": "bs",
    "iodepth": "iodepth",
    "batch": "iodepth_batch",
    "size": "size",
    "runtime": "runtime",
    "numjobs": "numjobs",
    "ioengine": "ioengine",
}
"""The options that stand for an option of each job, and that option."""
_HELP = {
    "rw": "read, write, randread, randwrite, rw, randrw, …",
    "bs": "block size (default: 4k)",
    "iodepth": "requests in flight (default: 1)",
    "batch": "requests in one submission (default: 1)",
    "size": "bytes of the disk to use (default: all)",
    "runtime": "seconds of each job (default: 10, and 5 where kernel code is emulated)",
    "numjobs": "processes side by side (default: 1)",
    "ioengine": "libaio, io_uring, psync, … (default: libaio)",
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        prog="pykvm bench fio",
        description="Run fio in a Linux guest, and show how each latency splits into the guest's "
        "part and the device's.",
        epilog="Without JOBFILE, --rw and --verify, it runs the preset ssd-test. Without --disk, "
        "it measures a temporary file. docs/reference/bench.md explains each option.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("job", metavar="JOBFILE", nargs="?", type=parse_path, help="a job file of fio")
    presets = "; ".join(f"{name}: {preset.text}" for name, preset in PRESETS.items())
    add("--preset", metavar="NAME", help=presets)
    for name, text in _HELP.items():
        add(f"--{name}", metavar="VALUE", help=text)
    add(
        *("--set",),
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="set this option of fio in each job, such as filename=/dev/vda; may be repeated",
    )
    add(
        "--verify",
        action="store_true",
        help="write the whole disk, read it back, and compare checksums (crc32c)",
    )
    add(
        *("--disk",),
        metavar="PATH[,KEY=VALUE...]",
        action="append",
        default=[],
        help="a disk, as in 'pykvm boot', or a folder for a temporary file; may be repeated",
    )
    add("--disk-size", metavar="SIZE", help="size of a temporary file (256M; emulated: 16M)")
    add("--overwrite", action="store_true", help="allow jobs that write to the image of --disk")
    add_guest_options(made)
    add("--repeat", metavar="N", default="1", help="run the jobs N times (default: 1)")
    add(
        *("--compare",),
        metavar="FILE",
        action="append",
        default=[],
        type=parse_path,
        help="compare with this JSON output of fio; may be repeated for several runs",
    )
    add("--histogram", action="store_true", help="also show how long requests took in the device")
    add("--json", metavar="FILE", type=parse_path, help="write fio's JSON output, unchanged")
    add("--chart", metavar="FILE", type=parse_path, help="draw the results as SVG")
    return made


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs to run: fio's job file, the files that it names, and a name for messages."""

    text: str
    files: Mapping[str, bytes]
    name: str

    @property
    def write(self) -> bool:
        """Whether the jobs may write to the disk."""
        return may_write(self.text)


def jobs_of(options: argparse.Namespace, disks: int, emulated: bool) -> Jobs:
    """The jobs that ``options`` describe, for a guest with ``disks`` disks; UsageError."""
    given = {
        fio: value for name, fio in _SHORT.items() if (value := getattr(options, name)) is not None
    }
    settings = given | dict(_setting(text) for text in options.set)
    _check_one(options)
    if options.job is not None:
        return _user_jobs(options.job, settings)
    devices = ":".join(f"/dev/vd{chr(ord('a') + i)}" for i in range(disks))
    common = {"filename": devices, "ioengine": "libaio", "direct": "1", "thread": "1"}
    seconds = str(_EMULATED_SECONDS if emulated else _SECONDS)
    if options.verify:
        shape = {"rw": "write", "bs": "64k", "iodepth": "8", "verify": "crc32c"}
        return Jobs(job_text({}, {"verify": common | shape | settings}), {}, "the job")
    if options.rw is not None:
        shape = {"bs": "4k", "iodepth": "1"}
        if not {"runtime", "size", "loops", "io_size"} & settings.keys():
            shape |= {"time_based": "1", "runtime": seconds}
        name = f"{settings['rw']}-{settings.get('bs', '4k')}".replace("]", "")
        return Jobs(job_text({}, {name: common | shape | settings}), {}, "the job")
    name = options.preset or DEFAULT_PRESET
    preset = PRESETS.get(name)
    if preset is None:
        hint = did_you_mean(name, PRESETS, f"use {', '.join(PRESETS)}")
        raise UsageError(f"there is no preset '{name}'", hint)
    seconds = str(preset.emulated_seconds if emulated else preset.seconds)
    return Jobs(with_settings(preset_job(preset, common, seconds), settings), {}, f"preset {name}")


def _check_one(options: argparse.Namespace) -> None:
    """UsageError for two descriptions of the jobs."""
    kinds = {
        "a job file": options.job is not None,
        "--preset": options.preset is not None,
        "--verify": options.verify,
    }
    if options.preset is not None and options.rw is not None:
        raise UsageError(
            "--preset and --rw exclude each other",
            "give one of them; --set rw=… changes the jobs of a preset",
        )
    chosen = [name for name, given in kinds.items() if given]
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0]} and {chosen[1]} exclude each other", "give one of them")


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key.strip() or not equals or "\n" in text:
        raise UsageError(f"--set cannot be '{text}'", "write it like --set filename=/dev/vda")
    return key.strip().lower(), value


def _user_jobs(path: Path, settings: Mapping[str, str]) -> Jobs:
    text = os.fsdecode(_content(path, "the job file"))
    if not has_jobs(text):
        raise UsageError(
            f"'{path}' has no job", "fio's job files have a section [NAME] for each job"
        )
    files = {}
    for name in named_files(text):
        if name.startswith("/") or ".." in name.split("/"):
            raise UsageError(
                f"'{path}' names the file '{name}', which is outside its folder",
                "put it beside the job file, and name it without a path",
            )
        files[name] = _content(path.parent / name, f"the file '{name}', which '{path}' names,")
    return Jobs(with_settings(text, settings), files, f"'{path}'")


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{what} cannot be read: {reason_of(error)}", "check its path") from None
