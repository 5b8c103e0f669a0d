"""``pykvm bench``: whole runs, small ones."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from patience import patience
from qemu_here import require_qemu, skip_where_qemu_runs_no_guest

from pykvm.bench.disk.tools.pykvm_tool import form
from pykvm.cli.main import main

SMALL = ["bench", "--size", "2M", "--requests", "200", "--runs", "1", "--depth", "4"]
START = ["bench", "--runs", "1"]
MEASURABLE = "10000"
"""Requests that take many ticks of a clock of processor time, which may stand still in between."""


def bench(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it with ``folder`` for its temporary files, of which nothing may be left."""
    begin = START if "--start" in arguments else SMALL
    done = subprocess.run(
        [sys.executable, "-m", "pykvm", *begin, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(120),
        env=os.environ | {"TMPDIR": str(folder)} | (environment or {}),
    )
    assert list(folder.iterdir()) == []
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty one."""
    made = tmp_path / "temporary"
    made.mkdir()
    return made


@pytest.mark.kvm
def test_a_table(folder: Path):
    done = bench(folder, "--workload", "randread", "--workload", "seqwrite-8k")
    assert done.returncode == 0, done.stderr
    head, first, second, nothing, cost, noise = done.stdout.splitlines()
    assert head.split()[-2:] == ["notif/1000", "irq/1000"]
    assert head.split()[:3] == ["workload", "depth", "IOPS"]
    assert first.startswith("randread 4 KiB ")
    assert second.startswith("seqwrite 8 KiB ")
    assert nothing == ""
    assert cost.startswith("pykvm: first guest instructions after ")
    assert cost.endswith(f", hot path {form()}")
    assert noise.startswith("meanwhile other programs used ")


@pytest.mark.kvm
def test_json_and_chart(folder: Path, tmp_path: Path):
    chart = tmp_path / "chart.svg"
    done = bench(
        *(folder, "--workload", "randread", "--json", "--chart", str(chart)),
        *("--requests", MEASURABLE, "--against", "pykvm,merge=off", "--wait", "interrupt"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"version", "form", "host", "settings", "rows", "tools"}
    (row,) = found["rows"]
    assert (row["workload"], row["block"], row["depth"]) == ("randread", 4096, 4)
    assert row["pykvm"]["iops"] > 0
    assert row["others"]["another pykvm"]["configuration"] == "merge=off"
    assert row["others"]["another pykvm"]["ratio"]["median"] > 0
    assert [tool["configuration"] for tool in found["tools"]] == ["", "merge=off"]
    assert set(found["host"]["noise"]) == {"others", "stolen", "busy"}
    assert (found["settings"]["cache"], found["settings"]["busy"]) == (["writeback"], 0)
    (run,) = found["tools"][0]["runs"]
    (sample,) = run["samples"]
    assert sample["cpu_whole"] > sample["cpu"] > 0
    assert sample["interrupts"] > 0
    assert 0 < sample["p50"] <= sample["p99"] <= sample["longest"]
    assert run["start"] > 0
    assert run["memory"] > 1 << 20
    assert run["ram"]["resident"] >= 1 << 16
    assert found["form"] == form()
    ElementTree.parse(chart)
    assert f"pykvm (hot path {form()})" in chart.read_text()


@pytest.mark.kvm
def test_against_qemu(folder: Path):
    require_qemu()
    load = ["--workload", "randread", "--requests", MEASURABLE]
    done = bench(folder, *load, "--against", "qemu,aio=threads", "--json")
    skip_where_qemu_runs_no_guest(done)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    theirs = found["rows"][0]["others"]["qemu"]
    assert theirs["configuration"] == "aio=threads"
    assert theirs["iops"] > 0
    assert theirs["cpu"] > 0
    assert "QEMU" in found["tools"][1]["version"]
    assert found["tools"][1]["note"].startswith("-cpu ")
    assert found["tools"][1]["note"].endswith("default memory (anonymous)")
    assert [tool["runs"][0]["ram"]["kind"] for tool in found["tools"]] == ["anonymous"] * 2


@pytest.mark.kvm
def test_both_cache_modes_beside_a_busy_loop(folder: Path):
    load = ["--workload", "randread", "--workload", "seqwrite-1m", "--requests", "50"]
    done = bench(folder, *load, "--cache", "writeback,none", "--busy", "1", "--size", "8M")
    if "tmpfs" in done.stderr:
        pytest.skip("temporary files are in memory here")
    assert done.returncode == 0, done.stderr
    blocks = done.stdout.split("\n\n")
    assert [blocks[0], blocks[3]] == ["cache writeback", "cache none"]
    assert all("seqwrite 1 MiB" in block for block in (blocks[1], blocks[4]))
    assert blocks[6].startswith("beside 1 busy loop, with ")


@pytest.mark.kvm
@pytest.mark.parametrize("more", [["--workload", "randread"], ["--start"]])
def test_a_qemu_that_cannot_run_here(folder: Path, tmp_path: Path, more: list[str]):
    """Nothing is measured, and nothing of pykvm has failed: the status is that of a host."""
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text("#!/bin/sh\necho failed to set MSR 0x10a >&2\nexit 1\n")
    qemu.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = bench(folder, *more, "--against", "qemu", environment={"PATH": path})
    assert (done.returncode, done.stdout) == (77, "")
    assert "cannot compare with QEMU, because" in done.stderr
    assert "saying 'failed to set MSR 0x10a'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"QFI\xfb\0\0\0\3", ["--workload", "randread"], "begins like a qcow2 image"),
        (b"", ["--workload", "randread", "--options", "cpu-affinity=1000"], "run on CPU 1000"),
    ],
)
def test_a_disk_that_boot_would_refuse(
    folder: Path, tmp_path: Path, content: bytes, options: list[str], words: str
):
    """It is refused in the same words, before anything is measured."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(content.ljust(1 << 20, b"\0"))
    command = [sys.executable, "-m", "pykvm", "bench", "--disk", str(disk), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "a run of" not in done.stderr


@pytest.mark.kvm
def test_growth_and_exits(folder: Path):
    done = bench(
        *(folder, "--workload", "seqread", "--segments", "1,8", "--vms", "1,2"),
        *("--exits", "--seconds", "0.05", "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    shapes = [(row["workload"], row["segments"], row["queues"], row["vms"]) for row in found]
    assert shapes == [
        *(("exits", 1, 1, 1), ("seqread", 1, 1, 1), ("seqread", 8, 1, 1)),
        *(("exits", 1, 1, 2), ("seqread", 1, 1, 2), ("seqread", 8, 1, 2)),
    ]
    measured = {row["workload"] for row in found if row["pykvm"]["exits"]}
    # None where the disk was always done before the guest had time for one.
    assert "exits" in measured


@pytest.mark.kvm
def test_the_start_of_a_vm(folder: Path):
    done = bench(folder, "--start")
    assert done.returncode == 0, done.stderr
    head, line, nothing, note = done.stdout.splitlines()
    assert (nothing, note) == ("", f"pykvm: hot path {form()}")
    assert head.split()[-3:] == ["ms", "least", "most"]
    assert line.split()[0] == "pykvm"
    assert 0 < int(line.split()[1]) < 60_000


@pytest.mark.kvm
def test_the_start_of_qemu(folder: Path):
    require_qemu()
    done = bench(folder, "--start", "--against", "qemu", "--json")
    skip_where_qemu_runs_no_guest(done)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["start"]
    names = [one["name"] for one in found]
    assert names == ["pykvm", "qemu microvm", "qemu pc", "qemu q35"]
    assert all(one["seconds"] == [one["median"]] for one in found)


@pytest.mark.kvm
def test_a_disk_of_the_users_is_kept(folder: Path, tmp_path: Path):
    disk = tmp_path / "disk, mine.img"
    content = os.urandom(1 << 20)
    disk.write_bytes(content)
    command = [sys.executable, "-m", "pykvm", "bench", "--disk", str(disk), "--requests", "50"]
    command += ["--runs", "1", "--depth", "2"]
    read = subprocess.run([*command, "--workload", "randread"], capture_output=True, check=False)
    assert read.returncode == 0, read.stderr
    assert disk.read_bytes() == content
    write = [*command, "--workload", "seqwrite"]
    refused = subprocess.run(write, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert disk.read_bytes() == content
    allowed = subprocess.run([*write, "--overwrite"], capture_output=True, check=False)
    assert allowed.returncode == 0, allowed.stderr
    assert disk.read_bytes() != content


def vm_of(pid: int) -> Path | None:
    """The folder in /proc of the VM that process ``pid`` has started, if it has."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        folder = Path("/proc") / child
        with suppress(OSError):
            if b"--initrd" in (folder / "cmdline").read_bytes():
                return folder
    return None


@pytest.mark.kvm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_bench_and_leaves_no_process_and_no_file(
    folder: Path, number: signal.Signals
):
    command = [*SMALL, "--requests", "0", "--seconds", "100", "--workload", "randread"]
    command += ["--busy", "1"]
    child = subprocess.Popen(
        [sys.executable, "-m", "pykvm", *command],
        env=os.environ | {"TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
    )
    try:
        end = time.monotonic() + patience()
        while (vm := vm_of(child.pid)) is None:
            assert child.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert len(children) == 2
        child.send_signal(number)
        assert child.wait(patience()) == 128 + number
    finally:
        child.kill()
        child.wait()
    assert child.stderr is not None
    with child.stderr:
        assert b"Traceback" not in child.stderr.read()
    assert list(folder.iterdir()) == []
    assert str(vm.name) in children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workload", "reed"], "no workload 'reed'"),
        (["--depth", "1,,2"], "--depth cannot be ''"),
        (["--runs", "0"], "--runs cannot be '0'"),
        (["--seconds", "601"], "--seconds is more than 600"),
        (["--seconds", "1e-7"], "--seconds is less than 0.001"),
        (["--depth", "2049"], "the depth cannot be 2049"),
        (["--depth", "1,3000"], "the depth cannot be 3000"),
        (["--start", "--chart", "x.svg"], "--start does not work with --chart"),
        (["--start", "--cache", "none"], "--start does not work with --cache"),
        (["--against", "pykvm,merge=off"] * 2, "asks for 'pykvm merge=off' twice"),
        (["--against", "xen"], "--against does not know 'xen'"),
        (["--queues", "1,5"], "--queues cannot be more than 4"),
        (["--segments", "0"], "--segments cannot be '0'"),
        (["--cpus", "5"], "--cpus cannot be more than 4"),
        (["--busy", "65"], "--busy cannot be more than 64"),
        (["--cache", "none,none"], "--cache has 'none' twice"),
        (["--vms", "2", "--disk", "README.md"], "--vms needs a separate disk for each VM"),
        (["--exits", "--wait", "interrupt"], "exits work only with --wait poll"),
        (["--queues", "2", "--wait", "interrupt"], "several --queues work only with --wait poll"),
        (["--start", "--against", "fio"], "--start cannot be compared with 'fio'"),
        (["--options", "merge=maybe"], "merge cannot be 'maybe'"),
        (["--against", "pykvm,mrge=off"], "--disk has no option 'mrge'"),
        (["--disk", "/no/such/disk"], "'/no/such/disk' cannot be read: no such file"),
        (["--disk", "/dev/null"], "'/dev/null' is smaller than 1 MiB"),
        (["--chart", "/"], "--chart /: is a directory"),
        (["--size", "100K"], "--size is less than 1 MiB"),
        (["--cache", "hot"], "--cache cannot be 'hot'"),
        (["--agianst", "qemu"], "did you mean --against"),
    ],
)
def test_mistakes(capfd, arguments: list[str], words: str):
    assert main(["bench", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err


def test_a_pipe_is_no_disk_and_is_not_waited_for(capfd, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert main(["bench", "--workload", "randread", "--disk", str(tmp_path / "pipe")]) == 2
    assert "cannot be read: illegal seek" in capfd.readouterr().err
