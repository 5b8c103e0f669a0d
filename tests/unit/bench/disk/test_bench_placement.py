"""The CPUs of the tools' threads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pykvm.bench.disk.tools import base, qemu
from pykvm.bench.disk.tools.base import Job, Placement
from pykvm.bench.disk.tools.fio import FioTool
from pykvm.bench.disk.tools.process import ProcessView
from pykvm.bench.disk.tools.pykvm_tool import PykvmTool
from pykvm.bench.disk.tools.qemu import QemuTool
from pykvm.bench.disk.workload import Shapes, parse_workloads
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError
from pykvm.host.threads import usable_cpus

THREADS = """
import threading, time
from pykvm.host.threads import show_thread_name

def live(name):
    show_thread_name(name)
    ready.wait()
    time.sleep(60)

ready = threading.Barrier(4)
for name in ("CPU 0", "CPU 1", "worker"):
    threading.Thread(target=live, args=(name,), daemon=True).start()
ready.wait()
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """On a host with CPUs 0 to 3, whatever this one has."""
    monkeypatch.setattr(base, "usable_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(qemu, "qemu_program", lambda: "qemu")
    monkeypatch.setattr(qemu, "cpu_model", lambda *_: "host")
    monkeypatch.setattr("shutil.which", lambda name: name)
    workloads = parse_workloads(["randread"], Shapes([4]))
    disks = [tmp_path / "disk.img"]
    return Job(workloads, disks, 1 << 20, CacheMode.NONE, 1, 0, tmp_path, 1, tmp_path)


def test_pykvm_and_fio_put_their_threads_by_themselves(job: Job) -> None:
    placed = replace(job, placement=Placement.around(2))
    ours = PykvmTool("merge=off").command(placed)
    assert ours[ours.index("--cpu-affinity") + 1] == "0-1,3"
    assert ours[ours.index("--disk") + 1].endswith(",merge=off,cpu-affinity=2")
    assert "--cpus_allowed=2" in FioTool("io_uring").command(placed)
    assert QemuTool("threads").command(placed) == QemuTool("threads").command(job)


def test_else_the_host_does(job: Job) -> None:
    for one in (PykvmTool(), FioTool("psync")):
        assert "affinity" not in " ".join(one.command(job))
        assert "cpus_allowed" not in " ".join(one.command(job))


@pytest.mark.parametrize(("usable", "cpu"), [({0, 1}, 2), ({3}, 3)])
def test_a_cpu_that_cannot_be(monkeypatch: pytest.MonkeyPatch, usable: set[int], cpu: int) -> None:
    monkeypatch.setattr(base, "usable_cpus", lambda: usable)
    with pytest.raises(UsageError, match="--pin"):
        Placement.around(cpu)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """A process with threads "CPU 0", "CPU 1" and "worker"."""
    command = [sys.executable, "-c", THREADS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


@pytest.mark.skipif(len(usable_cpus()) < 2, reason="this host has one CPU")
def test_threads_of_other_tools_are_placed_from_outside(process: subprocess.Popen[str]) -> None:
    first, second, *_ = sorted(usable_cpus())
    ProcessView(process.pid, "CPU ").place({first}, {second})
    found = {}
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        found[(task / "comm").read_text().strip()] = os.sched_getaffinity(int(task.name))
    assert found.pop("CPU 0") == found.pop("CPU 1") == {first}
    assert all(cpus == {second} for cpus in found.values())
    assert "worker" in found
