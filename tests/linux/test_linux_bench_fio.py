"""``pykvm bench fio``: fio in the bundled guest, in one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import linux_patience

from pykvm.cli.bench.linux_guest import is_emulated

pytestmark = [pytest.mark.kvm, pytest.mark.linux, pytest.mark.one_form]

MINE = """\
[global]
directory=/somewhere
filename=file
ioengine=libaio
direct=1
size=1G
bs=4k
iodepth=8
iodepth_batch=8
iodepth_batch_complete_min=8

[forwards]
rw=read

[writes]
stonewall
rw=write
"""
PANICS = """\
[job]
rw=read
filename=/dev/vda
exec_prerun=sh -c 'echo c >/proc/sysrq-trigger'
"""


def bench_fio(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pykvm", "bench", "fio", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=linux_patience(170),
    )


def test_a_users_job_file_with_merging_by_the_device_only(tmp_path: Path):
    file, output, chart = (tmp_path / name for name in ("mine.fio", "out.json", "chart.svg"))
    file.write_text(MINE)
    settings = ["--set", "filename=/dev/vda", "--size", "256k", "--guest-merging", "off"]
    files = ["--json", str(output), "--chart", str(chart)]
    done = bench_fio(str(file), "--disk", "blank=1M", *settings, *files)
    assert done.returncode == 0, done.stderr
    jobs, device, *rest = done.stdout.split("\n\n")
    assert [line.split()[:2] for line in jobs.splitlines()[1:]] == [
        ["forwards", "read"],
        ["writes", "write"],
    ]
    rows = [line.split() for line in device.splitlines()[1:]]
    assert [row[:3] for row in rows] == [["forwards", "read", "64"], ["writes", "write", "64"]]
    # A part of "of latency" is the sign of per cent. Then comes the number of merged requests.
    merged = [int(row[row.index("%") + 1]) for row in rows]
    assert all(count > 0 for count in merged)
    assert ("emulates" in "".join(rest)) is is_emulated()
    assert [job["error"] for job in json.loads(output.read_text())["jobs"]] == [0, 0]
    assert chart.read_text().startswith("<svg")


def test_a_guest_that_panics_while_fio_runs(tmp_path: Path):
    file = tmp_path / "panics.fio"
    file.write_text(PANICS)
    done = bench_fio(str(file), "--disk", "blank=1M")
    assert done.returncode == 126
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr
    assert "the console's last lines:\n" in done.stderr


def test_files_in_the_guests_memory_are_no_disk(tmp_path: Path):
    file = tmp_path / "memory.fio"
    file.write_text("[job]\nrw=randwrite\nfilename=/tmp/x\nsize=256k\n")
    done = bench_fio(str(file), "--disk", "blank=1M", "--histogram")
    assert (done.returncode, done.stdout) == (2, "")
    assert "sent no request to a disk: its files are in the guest's memory" in done.stderr
    assert "give --set filename=/dev/vda" in done.stderr


def test_an_error_of_fio_is_the_status():
    done = bench_fio("--rw", "read", "--disk", "blank=1M", "--ioengine", "none-such")
    assert done.returncode == 1
    assert "none-such" in done.stderr
    assert "fio did not accept the job" in done.stderr


def test_an_image_is_not_overwritten_unasked(tmp_path: Path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    done = bench_fio("--rw", "write", "--disk", str(image))
    assert done.returncode == 2
    assert "--overwrite" in done.stderr


def test_a_job_file_under_two_policies(tmp_path: Path):
    file, output = tmp_path / "mine.fio", tmp_path / "out.json"
    file.write_text(MINE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pykvm", "bench", "compare", "--load", str(file)),
            *("--vary", "merge=off,sequential", "--guest-merging", "off", "--repeat", "1"),
            *("--set", "filename=/dev/vda", "--set", "size=128k"),
            *("--disk", "blank=1M", "--json", str(output)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=linux_patience(170),
    )
    assert done.returncode == 0, done.stderr
    off, sequential = (
        one["samples"][0]["counters"] for one in json.loads(output.read_text())["configurations"]
    )
    assert off["rd_operations"] == sequential["rd_operations"] == 32
    assert (off["rd_merged"], off["wr_merged"]) == (0, 0)
    assert sequential["rd_merged"] + sequential["wr_merged"] > 0
