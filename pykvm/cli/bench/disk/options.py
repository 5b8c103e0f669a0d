"""The options of ``pykvm bench disk``, and the checks of their values."""

import argparse
from collections.abc import Sequence

from pykvm.bare import WaitMode
from pykvm.bench.disk.busy import BUSY_MAX
from pykvm.bench.disk.workload import (
    DEFAULTS,
    EXITS,
    QUEUES_MAX,
    SEGMENTS_MAX,
    VMS_MAX,
    Shapes,
    Workload,
    parse_workloads,
)
from pykvm.bench.image import MIB
from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError

NUMBER_MAX = 999_999_999
WAITS = {"poll": WaitMode.POLL, "interrupt": WaitMode.IDLE}


def parser() -> argparse.ArgumentParser:
    """The options of ``pykvm bench disk``."""
    made = Parser(
        prog="pykvm bench disk",
        description="Measure a virtio-blk disk with the bare-metal guest, and compare it with "
        "other tools.",
        epilog="Without --disk, bench measures a temporary file. docs/reference/bench.md explains "
        "each option.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--disk",
        metavar="PATH",
        type=parse_path,
        help="raw image or block device to measure, or a folder for the temporary file",
    )
    add("--size", metavar="SIZE", help="size of the temporary file (default: 256M)")
    add(
        "--overwrite",
        action="store_true",
        help="allow workloads that destroy the contents of --disk PATH",
    )
    add(
        *("--workload",),
        metavar="NAME",
        action="append",
        default=[],
        help="randread, randwrite, seqread or seqwrite, of 4 KiB or of a given block size "
        "(seqread-128k, seqread-1m); or exits; may be repeated",
    )
    several = "N[,N...]"
    add("--depth", metavar=several, help="requests in flight (default: 1,8,32,128)")
    add(
        "--segments",
        metavar=several,
        default="1",
        help="descriptors for a request's data (default: 1)",
    )
    add(
        "--queues",
        metavar=several,
        default="1",
        help="virtqueues of the disk, up to 4 (default: 1)",
    )
    add(
        "--vms",
        metavar=several,
        default="1",
        help="VMs side by side, each with its own disk (default: 1)",
    )
    add("--runs", metavar="N", default="5", help="runs that count (default: 5)")
    add(
        "--seconds",
        metavar="S",
        default="0.5",
        help="length of each workload in each run (default: 0.5)",
    )
    add(
        "--requests",
        metavar="N",
        default="0",
        help="end each workload after N requests instead of --seconds",
    )
    add(
        "--cache",
        metavar="MODE[,MODE...]",
        default="writeback",
        help="cache mode, as in --disk, such as writeback or none (default: writeback)",
    )
    add("--engine", metavar="NAME", help="pykvm's engine, as in --disk")
    add("--options", metavar="KEY=VALUE,...", default="", help="more keys of --disk for pykvm")
    add(
        "--cpus",
        metavar="N",
        default="4",
        help="most vCPUs; they share out the queues (default: 4)",
    )
    add(
        "--wait",
        choices=sorted(WAITS),
        default="poll",
        help="poll the used ring, or halt until an interrupt (default: poll)",
    )
    add(
        "--pin",
        metavar="CPU",
        help="run the disks' threads on this host CPU, and the vCPUs on the other CPUs",
    )
    add(
        "--busy",
        metavar="N",
        default="0",
        help="busy loops beside the measurement, up to 64 (default: 0)",
    )
    add(
        "--exits",
        action="store_true",
        help="also measure how long VM exits take while the guest waits for the disk",
    )
    add(
        *("--against",),
        metavar="TOOL",
        action="append",
        default=[],
        help="also measure this tool: qemu, fio, or pykvm,KEY=VALUE,... with other keys of "
        "--disk; may be repeated",
    )
    add("--start", action="store_true", help="measure how fast a VM starts, instead of a disk")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add(
        "--chart",
        metavar="FILE",
        type=parse_path,
        help="draw throughput and latency over queue depth as SVG",
    )
    return made


def parse_shapes(options: argparse.Namespace) -> list[Workload]:
    """The workloads that ``options`` select; UsageError."""
    names = options.workload or DEFAULTS
    if options.exits and EXITS not in names:
        # For comparison: the duration of exits while the disk is idle.
        names = [EXITS, *names]
    shapes = Shapes(
        depths=[] if options.depth is None else parse_numbers(options.depth, "--depth"),
        segments=parse_numbers(options.segments, "--segments", SEGMENTS_MAX),
        queues=parse_numbers(options.queues, "--queues", QUEUES_MAX),
        vms=parse_numbers(options.vms, "--vms", VMS_MAX),
    )
    return parse_workloads(names, shapes, skip_large=not options.workload)


def parse_numbers(text: str, option: str, most: int = NUMBER_MAX) -> list[int]:
    """Numbers from ``1,8,32``; UsageError."""
    return [parse_number(part, option, 1, most) for part in text.split(",")]


def parse_number(text: str, option: str, least: int, most: int = NUMBER_MAX) -> int:
    """A whole number from ``least`` to ``most``; UsageError."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) < least:
        hint = f"write a whole number from {least} to {most}"
        raise UsageError(f"{option} cannot be '{text}'", hint)
    if int(text) > most:
        raise UsageError(f"{option} cannot be more than {most}", f"use {least} to {most}")
    return int(text)


def check_wait(workloads: Sequence[Workload], wait: str, exits: bool) -> None:
    """UsageError for a workload that needs a guest that polls, if ``wait`` is not to poll."""
    if wait == "poll":
        return
    if exits or any(workload.kind == EXITS for workload in workloads):
        raise UsageError(
            "exits work only with --wait poll, because a halted guest makes none",
            "leave --wait out",
        )
    if any(workload.queues > 1 for workload in workloads):
        raise UsageError(
            "several --queues work only with --wait poll, because the guest takes interrupts of "
            "one queue",
            "leave --wait or --queues out",
        )


def check_room(workloads: Sequence[Workload], size: int) -> None:
    """UsageError if a disk of ``size`` bytes has no room for a block of each queue."""
    for workload in workloads:
        if workload.block * workload.queues > size:
            raise UsageError(
                f"a disk of {size // MIB} MiB is too small for blocks of "
                f"{workload.block >> 10} KiB in {workload.queues} queues",
                "use a larger disk or smaller blocks",
            )


def parse_busy(text: str) -> int:
    """The number of busy loops; UsageError."""
    return parse_number(text, "--busy", 0, BUSY_MAX)


def parse_caches(text: str) -> list[CacheMode]:
    """Cache modes from ``writeback,none``; UsageError."""
    found = [parse_cache(name) for name in text.split(",")]
    for mode in found:
        if found.count(mode) > 1:
            raise UsageError(f"--cache has '{mode.value}' twice", "give each mode once")
    return found


def parse_cache(text: str) -> CacheMode:
    """A cache mode by its name; UsageError."""
    try:
        return CacheMode(text)
    except ValueError:
        *most, last = (mode.value for mode in CacheMode)
        raise UsageError(
            f"--cache cannot be '{text}'", f"use {', '.join(most)} or {last}"
        ) from None
