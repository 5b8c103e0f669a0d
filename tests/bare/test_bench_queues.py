"""Loads on several queues, and in several VMs, at once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from qemu_here import require_qemu

from pykvm.bare import build_bare_guest
from pykvm.bench.disk.sample import Run
from pykvm.bench.disk.session import guest_tsc_khz
from pykvm.bench.disk.tools.base import Job, Tool
from pykvm.bench.disk.tools.pykvm_tool import PykvmTool
from pykvm.bench.disk.tools.qemu import QemuTool
from pykvm.bench.disk.workload import Shapes, parse_workloads
from pykvm.devices.virtio_blk import CacheMode

pytestmark = pytest.mark.kvm
SIZE = 4 << 20
REQUESTS = 64
Carry = Callable[..., Run]


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    """Two, of zeroes."""
    found = [tmp_path / "a.img", tmp_path / "b.img"]
    for path in found:
        path.write_bytes(bytes(SIZE))
    return found


def carry_out(
    tool: Tool, disks: Sequence[Path], names: list[str], shapes: Shapes, cpus: int
) -> Run:
    """One run of a few requests of each workload."""
    job = Job(
        workloads=parse_workloads(names, shapes),
        disks=disks,
        size=SIZE,
        cache=CacheMode.WRITEBACK,
        seconds=0.02,
        requests=REQUESTS,
        kernel=build_bare_guest(),
        tsc_khz=guest_tsc_khz(),
        folder=disks[0].parent,
        cpus=cpus,
    )
    marks: list[int] = []
    run = tool.run(job, 1, marks.append)
    # The one before all, and then one for each workload.
    assert marks == [0, *range(len(job.workloads))]
    return run


def blocks_written(data: bytes) -> list[int]:
    """The numbers of blocks of 4 KiB that are not zeroes."""
    return [i for i in range(len(data) // 4096) if any(data[4096 * i : 4096 * (i + 1)])]


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("tool", ["pykvm", "qemu"])
def test_each_queue_has_a_separate_part_of_the_disk(disks: list[Path], tool: str, cpus: int):
    if tool == "qemu":
        require_qemu("pc")
    made = PykvmTool() if tool == "pykvm" else QemuTool("threads")
    shapes = Shapes([1, 4], queues=[2])
    run = carry_out(made, disks, ["seqwrite"], shapes, cpus)
    assert all(sample is not None and sample.iops > 0 for sample in run.samples)
    half = SIZE // 4096 // 2
    expected = [*range(REQUESTS), *range(half, half + REQUESTS)]
    assert blocks_written(disks[0].read_bytes()) == expected
    assert blocks_written(disks[1].read_bytes()) == []


def test_each_vm_has_its_disk(disks: list[Path]):
    run = carry_out(PykvmTool(), disks, ["seqwrite", "exits"], Shapes([2], vms=[2]), 1)
    writes, exits = run.samples
    assert writes is not None
    assert writes.exits is None
    assert exits is not None
    assert exits.exits == exits.iops > 0
    assert exits.exit_p50 == exits.p50 > 0
    assert run.memory is not None
    assert run.memory > 1 << 20
    for disk in disks:
        assert blocks_written(disk.read_bytes()) == list(range(REQUESTS))
