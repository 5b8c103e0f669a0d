"""``pykvm bench disk``: measures how fast a disk is under pykvm and other tools."""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pykvm.bare import build_bare_guest
from pykvm.bare.layout import CPUS_MAX
from pykvm.bench.disk.busy import BusyLoops, busy_loops
from pykvm.bench.disk.report.json_object import as_object
from pykvm.bench.disk.report.table import as_text, beside
from pykvm.bench.disk.session import Measurement, guest_tsc_khz, measure
from pykvm.bench.disk.tools.base import Job, Placement, Tool
from pykvm.bench.disk.tools.choice import tools_of_modes
from pykvm.bench.disk.tools.pykvm_tool import PykvmTool
from pykvm.cli.bench.disk.disks import check_disk_options, check_tools, disk_of, disks_of
from pykvm.cli.bench.disk.options import (
    WAITS,
    check_room,
    check_wait,
    parse_busy,
    parse_caches,
    parse_number,
    parse_shapes,
    parser,
)
from pykvm.cli.progress import Progress, Stopped, stops_at_signals
from pykvm.cli.say import STDOUT, emit, put, say
from pykvm.cli.values import parse_seconds
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import PykvmError, UsageError, reason_of
from pykvm.names import json_text
from pykvm.outputs import Output, Outputs

_ONLY_FOR_DISKS = (
    *("disk", "size", "overwrite", "workload", "depth", "segments", "queues", "vms", "seconds"),
    *("requests", "cache", "engine", "options", "cpus", "wait", "pin", "exits", "chart"),
)
"""The options that --start does not accept."""
BUSY = 0.25
"""A host with more load per CPU than this counts as busy."""


def run_disk(arguments: Sequence[str]) -> int:
    """Run ``pykvm bench disk`` and return the exit status."""
    options = parser().parse_args(arguments)
    if options.start:
        return _run_start(options)
    workloads = parse_shapes(options)
    caches = parse_caches(options.cache)
    runs = parse_number(options.runs, "--runs", 1)
    requests = parse_number(options.requests, "--requests", 0)
    seconds = parse_seconds(options.seconds)
    if seconds > 600:
        raise UsageError("--seconds is more than 600", "measure more --runs instead")
    if seconds < 0.001:
        raise UsageError("--seconds is less than 0.001", "give a longer time, such as 0.5")
    cpus = parse_number(options.cpus, "--cpus", 1, CPUS_MAX)
    busy = parse_busy(options.busy)
    check_wait(workloads, options.wait, options.exits)
    placement = None
    if options.pin is not None:
        placement = Placement.around(parse_number(options.pin, "--pin", 0))
    engine = f"engine={options.engine}" if options.engine is not None else ""
    ours = PykvmTool(",".join(part for part in (engine, options.options) if part))
    tools: dict[CacheMode, list[Tool]] = {
        cache: [ours, *others] for cache, others in tools_of_modes(options.against, caches).items()
    }
    check_disk_options(tools, workloads)
    progress = Progress()
    try:
        with ExitStack() as stack:
            stack.enter_context(stops_at_signals())
            stack.callback(progress.clear)
            chart = _open_chart(stack, options, tools[caches[0]])
            kernel, tsc_khz = build_bare_guest(), guest_tsc_khz()
            disks, size = disks_of(stack, options, workloads, progress)
            check_room(workloads, size)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pykvm-bench-"))
            jobs = [
                Job(
                    *(workloads, disks, size, cache, seconds, requests, kernel, tsc_khz),
                    folder=Path(folder),
                    wait=WAITS[options.wait],
                    cpus=cpus,
                    exits=options.exits,
                    placement=placement,
                )
                for cache in caches
            ]
            parts = [Measurement(job, tools[job.cache]) for job in jobs]
            for part in parts:
                check_tools(part)
            progress.clear()
            loops = _begin(stack, busy)
            session = measure(parts, runs, loops, progress)
            if chart is not None:
                from pykvm.bench.disk.report.chart import chart_of

                _write_chart(chart, options.chart, chart_of(session.rows(), ours.note(jobs[0])))
    except Stopped as stopped:
        return 128 + stopped.number
    emit(json_text(as_object(session)) + "\n" if options.json else as_text(session))
    return 0


def _begin(stack: ExitStack, busy: int) -> BusyLoops:
    """Warn of a busy host, and then start the busy loops of ``--busy``."""
    _warn_if_busy()
    return stack.enter_context(busy_loops(busy))


def _run_start(options: argparse.Namespace) -> int:
    from pykvm.bench.disk import start

    unknown = [tool for tool in options.against if tool != "qemu"]
    if unknown:
        raise UsageError(f"--start cannot be compared with '{unknown[0]}'", "use --against qemu")
    refused = [
        name for name in _ONLY_FOR_DISKS if getattr(options, name) != parser().get_default(name)
    ]
    if refused:
        raise UsageError(
            f"--start does not work with --{refused[0].replace('_', '-')}",
            "it works with --against qemu, --runs, --busy and --json",
        )
    runs, busy = parse_number(options.runs, "--runs", 1), parse_busy(options.busy)
    progress = Progress()
    try:
        with ExitStack() as stack:
            stack.enter_context(stops_at_signals())
            stack.callback(progress.clear)
            found = start.starts(build_bare_guest(), bool(options.against))
            progress.clear()
            loops = _begin(stack, busy)
            start.time_starts(found, runs, progress)
            loops.cpu_time()  # raises if a busy loop has ended meanwhile
    except Stopped as stopped:
        return 128 + stopped.number
    if options.json:
        emit(json.dumps({"start": start.start_object(found), "busy": busy}) + "\n")
    else:
        emit(start.start_table(found) + "\n" + (f"{beside(busy)}\n" if busy else ""))
    return 0


def _open_chart(
    stack: ExitStack, options: argparse.Namespace, tools: Sequence[Tool]
) -> Output | None:
    """The open file of --chart, None without one; UsageError for the file or a standard stream."""
    inputs = [options.disk] if options.disk else []
    for tool in tools:
        if isinstance(tool, PykvmTool):
            faults = disk_of(tool).faults
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
        raise PykvmError(f"--chart {path}: {reason_of(error)}", "give a different file") from None


def _warn_if_busy() -> None:
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cpus:
        say(f"this host is busy (load {load:.1f} on {cpus} CPUs): results will vary widely")
