"""A load on several queues at once, which takes a device that has them."""

import shutil
from pathlib import Path

import pytest

from pykvm.bench.qemu import QemuTool
from pykvm.bench.session import guest_tsc_khz
from pykvm.bench.tool import Job
from pykvm.bench.workload import parse_workloads
from pykvm.devices.virtio_blk import CacheMode
from pykvm.testing.bare import build_bare_guest

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed"),
]


def test_each_queue_has_its_part_of_the_disk(tmp_path: Path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4 << 20))
    job = Job(
        workloads=parse_workloads(["seqwrite"], [1, 4]),
        disk=disk,
        size=4 << 20,
        cache=CacheMode.WRITEBACK,
        seconds=1,
        requests=64,
        kernel=build_bare_guest(),
        tsc_khz=guest_tsc_khz(),
        folder=tmp_path,
        queues=2,
    )
    marks: list[int] = []
    run = QemuTool("threads").run(job, 1, marks.append)
    # The one before all, and then one for each workload.
    assert marks == [0, 0, 1]
    assert all(sample is not None and sample.iops > 0 for sample in run.samples)
    data = disk.read_bytes()
    half, block = len(data) // 2, 4096
    for start in (0, half):
        written = [any(data[at : at + block]) for at in range(start, start + half, block)]
        assert [i for i, is_written in enumerate(written) if is_written] == list(range(64))
