"""``pykvm bench``: how fast disks are, here and under others."""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pykvm.bench.choose import tools_against
from pykvm.bench.compare import middle
from pykvm.bench.disk import MIB, SIZE_MIN, read_all, size_of, temporary_disk
from pykvm.bench.pykvm_tool import PykvmTool
from pykvm.bench.report import as_object
from pykvm.bench.session import Measurement, guest_tsc_khz, measure
from pykvm.bench.table import cost_of, tables
from pykvm.bench.tool import Job, Placement, Tool
from pykvm.bench.workload import (
    DEFAULTS,
    EXITS,
    QUEUES_MAX,
    SEGMENTS_MAX,
    VMS_MAX,
    Shapes,
    Workload,
    parse_workloads,
)
from pykvm.cli.disk_keys import parse_disk
from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path
from pykvm.cli.process import signals_go_to
from pykvm.cli.say import STDERR, STDOUT, emit, put, say
from pykvm.cli.values import parse_seconds, parse_size
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import PykvmError, UsageError, reason_of
from pykvm.machine.disks import DiskConfig
from pykvm.names import json_text
from pykvm.outputs import Output, Outputs
from pykvm.testing.bare import WaitMode, build_bare_guest
from pykvm.testing.bare.layout import CPUS_MAX

BUSY = 0.25
"""Load per CPU above which a host is not quiet."""
NUMBER_MAX = 999_999_999
_WAITS = {"poll": WaitMode.POLL, "interrupt": WaitMode.IDLE}


def parser() -> argparse.ArgumentParser:
    """The options of ``pykvm bench``."""
    made = Parser(
        prog="pykvm bench",
        description="Measure a virtio-blk disk with the bare-metal guest, and compare.",
        epilog="Without --disk, a temporary file is measured. docs/reference/bench.md has more.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--disk",
        metavar="PATH",
        type=parse_path,
        help="raw image or block device, or a folder for one",
    )
    add("--size", metavar="SIZE", help="of the temporary file (256M)")
    add("--overwrite", action="store_true", help="let writes destroy what --disk PATH holds")
    add(
        *("--workload",),
        metavar="NAME",
        action="append",
        default=[],
        help="randread, randwrite, seqread, seqwrite, or with a block size: seqread-128k, "
        "seqread-1m; or exits; may be repeated",
    )
    several = "N[,N...]"
    add("--depth", metavar=several, help="requests in flight (1,8,32,128)")
    add("--segments", metavar=several, default="1", help="descriptors of a request's data (1)")
    add("--queues", metavar=several, default="1", help="virtqueues of the disk, up to 4 (1)")
    add("--vms", metavar=several, default="1", help="VMs side by side, each with a disk (1)")
    add("--runs", metavar="N", default="5", help="runs that count (5)")
    add("--seconds", metavar="S", default="0.5", help="per workload and run (0.5)")
    add("--requests", metavar="N", default="0", help="per workload and run, instead of a time")
    add("--cache", metavar="MODE", default="writeback", help="as in --disk: writeback, none, ...")
    add("--engine", metavar="NAME", help="as in --disk")
    add("--options", metavar="KEY=VALUE,...", default="", help="more keys of --disk for pykvm")
    add("--cpus", metavar="N", default="4", help="the most vCPUs that share out the queues (4)")
    add("--wait", choices=sorted(_WAITS), default="poll", help="how the guest waits (poll)")
    add("--pin", metavar="CPU", help="serve disks on this CPU of the host, run vCPUs on others")
    add("--exits", action="store_true", help="time exits that the guest makes while it waits")
    add(
        *("--against",),
        metavar="TOOL",
        action="append",
        default=[],
        help="qemu, fio, or pykvm,KEY=VALUE,... with other options; may be repeated",
    )
    add("--start", action="store_true", help="time the start of a VM instead of a disk")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--chart", metavar="FILE", type=parse_path, help="write throughput and latency as SVG")
    return made


class _Stopped(BaseException):
    """A signal asks for the end; not an Exception, so that nothing on the way takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Stop:
    """Ends the measurement at the first signal; later ones must not disturb the tidying up."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int) -> None:
        if not self._asked:
            self._asked = True
            raise _Stopped(number)


class Progress:
    """What is going on, in one line of a terminal that is taken back at the end."""

    def __init__(self) -> None:
        self._shown = os.isatty(STDERR)

    def __call__(self, text: str) -> None:
        """Show ``text`` instead of what was shown before."""
        if self._shown:
            put(STDERR, f"\r\033[K{text}")

    def clear(self) -> None:
        """Show nothing."""
        self("")


def run_bench(arguments: Sequence[str]) -> int:
    """Run ``pykvm bench`` and return the exit status."""
    options = parser().parse_args(arguments)
    if options.start:
        return _run_start(options)
    workloads = parse_shapes(options)
    cache = parse_cache(options.cache)
    runs = parse_number(options.runs, "--runs", 1)
    requests = parse_number(options.requests, "--requests", 0)
    seconds = parse_seconds(options.seconds)
    if seconds > 600:
        raise UsageError("--seconds is more than 600", "measure more --runs instead")
    cpus = parse_number(options.cpus, "--cpus", 1, CPUS_MAX)
    check_wait(workloads, options.wait, options.exits)
    placement = None
    if options.pin is not None:
        placement = Placement.around(parse_number(options.pin, "--pin", 0))
    engine = f"engine={options.engine}" if options.engine is not None else ""
    ours = PykvmTool(",".join(part for part in (engine, options.options) if part))
    tools: list[Tool] = [ours]
    for text in options.against:
        tools += tools_against(text, cache)
    _check_disk_options(tools, workloads)
    progress = Progress()
    try:
        with ExitStack() as stack:
            stack.enter_context(signals_go_to(_Stop()))
            stack.callback(progress.clear)
            chart = _open_chart(stack, options, tools)
            kernel, tsc_khz = build_bare_guest(), guest_tsc_khz()
            disks, size = _disks(stack, options, workloads, progress)
            check_room(workloads, size)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pykvm-bench-"))
            job = Job(
                *(workloads, disks, size, cache, seconds, requests, kernel, tsc_khz),
                folder=Path(folder),
                wait=_WAITS[options.wait],
                cpus=cpus,
                exits=options.exits,
                placement=placement,
            )
            for tool in tools:
                tool.note(job)  # a tool that cannot run here is told of before minutes are spent
            _warn_if_busy()
            measurement = measure(job, tools, runs, progress)
            if chart is not None:
                from pykvm.bench.chart import chart_of

                _write_chart(chart, options.chart, chart_of(measurement.rows(), ours.note(job)))
    except _Stopped as stopped:
        return 128 + stopped.number
    emit(json_text(as_object(measurement)) + "\n" if options.json else as_text(measurement))
    return 0


def _run_start(options: argparse.Namespace) -> int:
    from pykvm.bench import start

    unknown = [tool for tool in options.against if tool != "qemu"]
    if unknown:
        raise UsageError(f"--start knows no '{unknown[0]}'", "use --against qemu")
    runs = parse_number(options.runs, "--runs", 1)
    progress = Progress()
    try:
        with ExitStack() as stack:
            stack.enter_context(signals_go_to(_Stop()))
            stack.callback(progress.clear)
            found = start.starts(build_bare_guest(), bool(options.against))
            _warn_if_busy()
            start.time_starts(found, runs, progress)
    except _Stopped as stopped:
        return 128 + stopped.number
    as_json = json.dumps({"start": start.start_object(found)})
    emit((as_json if options.json else start.start_table(found)) + "\n")
    return 0


def as_text(measurement: Measurement) -> str:
    """What people see."""
    lines = [tables(measurement.rows()), ""]
    for tool, runs in zip(measurement.tools, measurement.runs, strict=True):
        start = middle(run.start for run in runs)
        memory = middle(run.memory for run in runs)
        cost = cost_of(f"{tool.name} {tool.label}".strip(), start, memory)
        lines.append(", ".join(part for part in (cost, tool.note(measurement.job)) if part))
    lines.append(str(measurement.noise))
    return "\n".join(line for i, line in enumerate(lines) if line or i == 1) + "\n"


def parse_shapes(options: argparse.Namespace) -> list[Workload]:
    """The workloads that are asked for; UsageError."""
    names = options.workload or DEFAULTS
    if options.exits and EXITS not in names:
        # What exits take while the disk does nothing, to compare with.
        names = [EXITS, *names]
    shapes = Shapes(
        depths=[] if options.depth is None else parse_numbers(options.depth, "--depth"),
        segments=parse_numbers(options.segments, "--segments", SEGMENTS_MAX),
        queues=parse_numbers(options.queues, "--queues", QUEUES_MAX),
        vms=parse_numbers(options.vms, "--vms", VMS_MAX),
    )
    return parse_workloads(names, shapes, skip_large=not options.workload)


def parse_numbers(text: str, what: str, most: int = NUMBER_MAX) -> list[int]:
    """Numbers from ``1,8,32``; UsageError."""
    return [parse_number(part, what, 1, most) for part in text.split(",")]


def parse_number(text: str, what: str, least: int, most: int = NUMBER_MAX) -> int:
    """A whole number from ``least`` to ``most``; UsageError."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) < least:
        hint = f"write a whole number from {least} to {most}"
        raise UsageError(f"{what} cannot be '{text}'", hint)
    if int(text) > most:
        raise UsageError(f"{what} cannot be more than {most}", f"use {least} to {most}")
    return int(text)


def check_wait(workloads: Sequence[Workload], wait: str, exits: bool) -> None:
    """UsageError for what can be done only by a guest that polls."""
    if wait == "poll":
        return
    if exits or any(workload.kind == EXITS for workload in workloads):
        raise UsageError("exits go with --wait poll only", "a guest that halts makes none")
    if any(workload.queues > 1 for workload in workloads):
        raise UsageError(
            "--queues goes with --wait poll only", "interrupts go to one queue of the guest"
        )


def _check_disk_options(tools: Sequence[Tool], workloads: Sequence[Workload]) -> None:
    """UsageError now for what a run of pykvm would refuse later."""
    queues = max(workload.queues for workload in workloads)
    more = f",num-queues={queues}" if queues > 1 else ""
    for tool in tools:
        if isinstance(tool, PykvmTool):
            _disk_of(tool, more)


def _disk_of(tool: PykvmTool, more: str = "") -> DiskConfig:
    if tool.label.startswith(","):
        raise UsageError(f"'{tool.label}' begins with a comma", "write KEY=VALUE,...")
    return parse_disk(f"disk{more}" + (f",{tool.label}" if tool.label else ""))


def check_room(workloads: Sequence[Workload], size: int) -> None:
    """UsageError if the part of ``size`` bytes that each queue gets does not hold a block."""
    for workload in workloads:
        if workload.block * workload.queues > size:
            raise UsageError(
                f"a disk of {size // MIB} MiB is too small for blocks of "
                f"{workload.block >> 10} KiB in {workload.queues} queues",
                "use a larger disk or smaller blocks",
            )


def parse_cache(text: str) -> CacheMode:
    """A cache mode by its name; UsageError."""
    try:
        return CacheMode(text)
    except ValueError:
        *most, last = (mode.value for mode in CacheMode)
        raise UsageError(
            f"--cache cannot be '{text}'", f"use {', '.join(most)} or {last}"
        ) from None


def _disks(
    stack: ExitStack,
    options: argparse.Namespace,
    workloads: Sequence[Workload],
    progress: Progress,
) -> tuple[list[Path], int]:
    """The disks to measure, one for each VM, and the size of each in bytes."""
    path: Path | None = options.disk
    count = max(workload.vms for workload in workloads)
    if path is None or path.is_dir():
        size = parse_size("256M" if options.size is None else options.size) // 4096 * 4096
        if size < SIZE_MIN:
            raise UsageError("--size is less than 1 MiB", "write it like 256M")
        progress(f"making disks of {size // MIB} MiB")
        return [stack.enter_context(temporary_disk(path, size)) for _ in range(count)], size
    if count > 1:
        raise UsageError("--vms needs a disk for each", "leave --disk out, or give it a folder")
    if options.size is not None:
        raise UsageError("--size is for temporary files", "leave it out, or give --disk a folder")
    size = size_of(path)
    if any(workload.write for workload in workloads) and not options.overwrite:
        raise UsageError(
            f"writes would destroy what '{path}' holds",
            "give --overwrite if they may, or only workloads that read",
        )
    if not parse_cache(options.cache).direct:
        progress(f"reading {path}")
        read_all(path)
    return [path], size


def _open_chart(
    stack: ExitStack, options: argparse.Namespace, tools: Sequence[Tool]
) -> Output | None:
    """The file of --chart, if one is asked for; UsageError for it or a standard stream."""
    inputs = [options.disk] if options.disk else []
    for tool in tools:
        if isinstance(tool, PykvmTool):
            faults = _disk_of(tool).faults
            inputs += [faults.path] if faults else []
    outputs = stack.enter_context(Outputs(inputs))
    outputs.check_streams()
    if options.json:
        outputs.take_stream(STDOUT, "--json")
    return outputs.open(options.chart, "--chart") if options.chart else None


def _write_chart(chart: Output, path: Path, text: str) -> None:
    try:
        chart.begin()
        put(chart.fd, text)
    except OSError as error:
        raise PykvmError(f"--chart {path}: {reason_of(error)}", "give another file") from None


def _warn_if_busy() -> None:
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cpus:
        say(f"this host is busy (load {load:.1f} on {cpus} CPUs): expect wide spreads")
