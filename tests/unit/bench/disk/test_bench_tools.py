"""Failing tools, and the report of fio."""

import json
import sys
from pathlib import Path

import pytest
from bench_kernel import CODE, write_kernel

from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bench.disk.tools.base import Job
from pykvm.bench.disk.tools.fio import FioTool, sample_of
from pykvm.bench.disk.tools.vm_runner import VmRunner
from pykvm.bench.disk.tools.watched_vm import Kind
from pykvm.bench.disk.workload import Shapes, parse_workloads
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import PykvmError

READ = {
    "iops": 12345.6,
    "runtime": 2000,
    "total_ios": 20000,
    "lat_ns": {
        "max": 900000,
        "percentile": {"50.000000": 50000, "99.000000": 99000, "99.900000": 99900},
    },
}
KIND = Kind("vcpu", status=0)
REPORT = {"read": READ, "write": {}, "usr_cpu": 10.0, "sys_cpu": 40.0}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two workloads on a disk that need not be there."""
    return Job(
        workloads=parse_workloads(["randread", "seqwrite"], Shapes([4])),
        disks=[tmp_path / "disk.img"],
        size=1 << 20,
        cache=CacheMode.WRITEBACK,
        seconds=1,
        requests=0,
        kernel=write_kernel(tmp_path / "kernel"),
        tsc_khz=1_000_000,
        folder=tmp_path,
    )


def program(folder: Path, name: str, lines: str) -> None:
    """A shell script on the PATH."""
    (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
    (folder / name).chmod(0o755)


def run_vm(job: Job, script: str) -> None:
    """A run whose VM is a shell script."""
    runner = VmRunner(lambda job, disk, path: ["/bin/sh", "-c", script], KIND)
    runner.run(job, 1, lambda number: None)


def test_a_vm_that_ends_early_is_quoted(job: Job):
    with pytest.raises(
        PykvmError,
        match=r"sh failed: it ended before .*status 3, .*'one thing; no disk'; the command",
    ):
        run_vm(job, "echo hello; echo 'one thing' >&2; echo 'no disk' >&2; exit 3")


def test_a_vm_whose_memory_does_not_hold_the_guest(job: Job):
    with pytest.raises(PykvmError, match="RAM cannot be found"):
        run_vm(job, "echo mark -1; exec sleep 100")


def test_a_vm_that_cannot_be_started(job: Job):
    runner = VmRunner(lambda job, disk, path: ["/no/such/program"], KIND)
    with pytest.raises(PykvmError, match="/no/such/program cannot be run: no such file"):
        runner.run(job, 1, lambda number: None)


def test_a_vm_ends_with_its_run(job: Job, tmp_path: Path):
    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    # It says that it has begun, as the guest does, from a process with guest RAM.
    source = (
        "import mmap, os, time\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        f"ram = mmap.mmap(-1, {MEMORY_NEEDED})\n"
        f"ram[{CODE.address}:{CODE.address + len(CODE.data)}] = {CODE.data!r}\n"
        "print('mark -1', flush=True)\n"
        "time.sleep(100)\n"
    )
    runner = VmRunner(lambda job, disk, path: [sys.executable, "-c", source], KIND)
    with pytest.raises(KeyboardInterrupt):
        runner.run(job, 1, interrupt)
    pid = (tmp_path / "pid").read_text()
    assert not Path(f"/proc/{pid}").exists()


def test_fio_is_read():
    sample = sample_of(REPORT, parse_workloads(["randread"], Shapes([4]))[0])
    assert (sample.iops, sample.p50, sample.p99, sample.p999) == (12345.6, 50, 99, 99.9)
    assert sample.longest == 900
    assert sample.cpu == pytest.approx(50)


def test_fio_runs_each_workload(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report = json.dumps({"jobs": [REPORT | {"write": READ}]})
    log = tmp_path / "log"
    tunables = tmp_path / "tunables"
    lines = (
        f'echo "$@" >>{log}',
        f"echo GLIBC_TUNABLES=$GLIBC_TUNABLES >{tunables}",
        "echo a warning",
        f"echo '{report}'",
    )
    program(tmp_path, "fio", "\n".join(lines))
    monkeypatch.setenv("PATH", str(tmp_path))
    run = FioTool("io_uring").run(job, 7, lambda number: None)
    assert [sample and sample.iops for sample in run.samples] == [12345.6, 12345.6]
    first, second = log.read_text().splitlines()
    for words in ("--rw=randread", "--bs=4096", "--iodepth=4", "--randseed=7", "--direct=0"):
        assert words in first
    assert "--rw=write" in second
    assert tunables.read_text().strip() == FioTool("io_uring").command(job)[1]
    synchronous = FioTool("psync").run(job, 7, lambda number: None)
    assert synchronous.samples == (None, None)


@pytest.mark.parametrize("report", ["nothing", "{", "{}", '{"jobs": [{"read": {}}]}'])
def test_an_incomplete_report_of_fio_is_an_error(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str
):
    program(tmp_path, "fio", f"echo '{report}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PykvmError, match="fio's report does not have"):
        FioTool("x").run(job, 1, lambda number: None)


def test_fio_that_fails_is_quoted(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program(tmp_path, "fio", "echo 'fio: no such engine' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PykvmError, match="fio failed, saying 'fio: no such engine'"):
        FioTool("x").run(job, 1, lambda number: None)
