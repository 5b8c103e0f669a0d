"""What ``pykvm bench`` can be asked for, and what it refuses at once."""

import argparse
from collections.abc import Sequence

from pykvm.bare import WaitMode
from pykvm.bench.busy import BUSY_MAX
from pykvm.bench.disk import MIB
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
from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError

NUMBER_MAX = 999_999_999
WAITS = {"poll": WaitMode.POLL, "interrupt": WaitMode.IDLE}


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
    modes = "MODE[,MODE...]"
    add("--cache", metavar=modes, default="writeback", help="as in --disk: writeback, none, ...")
    add("--engine", metavar="NAME", help="as in --disk")
    add("--options", metavar="KEY=VALUE,...", default="", help="more keys of --disk for pykvm")
    add("--cpus", metavar="N", default="4", help="the most vCPUs that share out the queues (4)")
    add("--wait", choices=sorted(WAITS), default="poll", help="how the guest waits (poll)")
    add("--pin", metavar="CPU", help="serve disks on this CPU of the host, run vCPUs on others")
    add("--busy", metavar="N", default="0", help="busy loops that run beside, up to 64 (0)")
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


def check_room(workloads: Sequence[Workload], size: int) -> None:
    """UsageError if the part of ``size`` bytes that each queue gets does not hold a block."""
    for workload in workloads:
        if workload.block * workload.queues > size:
            raise UsageError(
                f"a disk of {size // MIB} MiB is too small for blocks of "
                f"{workload.block >> 10} KiB in {workload.queues} queues",
                "use a larger disk or smaller blocks",
            )


def parse_busy(text: str) -> int:
    """How many busy loops; UsageError."""
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
