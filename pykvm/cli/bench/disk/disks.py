"""The disks that ``pykvm bench`` measures, and the checks before the long measurement."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bench.disk.session import Measurement
from pykvm.bench.disk.tools.base import Tool
from pykvm.bench.disk.tools.pykvm_tool import PykvmTool
from pykvm.bench.disk.workload import Workload
from pykvm.bench.image import MIB, SIZE_MIN, check_on_disk, size_of, temporary_disk
from pykvm.cli.disk_keys import parse_disk
from pykvm.cli.values import parse_size
from pykvm.devices.virtio_blk import CacheMode
from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import UsageError


def disks_of(
    stack: ExitStack,
    options: argparse.Namespace,
    workloads: Sequence[Workload],
    progress: Callable[[str], None],
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
        raise UsageError(
            "--vms needs a separate disk for each VM", "leave --disk out, or give it a folder"
        )
    if options.size is not None:
        raise UsageError(
            "--size applies only to temporary files", "leave it out, or give --disk a folder"
        )
    size = size_of(path)
    if any(workload.write for workload in workloads) and not options.overwrite:
        raise UsageError(
            f"writes would destroy the contents of '{path}'",
            "give --overwrite to allow that, or choose workloads that only read",
        )
    return [path], size


def check_disk_options(
    tools: Mapping[CacheMode, Sequence[Tool]], workloads: Sequence[Workload]
) -> None:
    """UsageError for disk options that a later run of pykvm would refuse."""
    queues = max(workload.queues for workload in workloads)
    more = f",num-queues={queues}" if queues > 1 else ""
    for cache, of_mode in tools.items():
        for tool in of_mode:
            if isinstance(tool, PykvmTool):
                disk_of(tool, f",cache={cache.value}{more}")


def disk_of(tool: PykvmTool, more: str = "") -> DiskConfig:
    """The disk that ``tool``'s options and the keys ``more`` describe; UsageError."""
    if tool.label.startswith(","):
        raise UsageError(f"'{tool.label}' begins with a comma", "write KEY=VALUE,...")
    return parse_disk(f"disk{more}" + (f",{tool.label}" if tool.label else ""))


def check_tools(measurement: Measurement) -> None:
    """Find a tool that cannot run here before the long measurement begins.

    HostError, or the error that ``pykvm boot`` would raise for the disk.
    """
    if measurement.job.cache.direct:
        check_on_disk(measurement.job.disks[0])
    job = max(measurement.job.parts(), key=lambda part: part.queues)
    for tool in measurement.tools:
        tool.note(job)
        if isinstance(tool, PykvmTool):
            from pykvm.machine import Machine, MachineConfig

            config = MachineConfig(
                kernel=job.kernel,
                append="script",
                memory=MEMORY_NEEDED,
                cpus=job.vcpus,
                disks=[parse_disk(tool.disk_keys(job, job.disks[0]))],
            )
            with Machine(config):
                pass
