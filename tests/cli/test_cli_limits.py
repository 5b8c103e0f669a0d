"""Runs under limits of setrlimit(2): a message names the limit and the remedy, and no run hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from patience import patience

pytestmark = pytest.mark.kvm

KEPT = "-all,+dac_override"  # lets an unprivileged user read a Python in root's home
ORDINARY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
ORDINARY += [f"--inh-caps={KEPT}", f"--ambient-caps={KEPT}", f"--bounding-set={KEPT}"]
"""Makes root a user for whom threads are limited."""


def run(limit: str, *arguments: str | Path, prefix: list[str] | None = None) -> tuple[int, str]:
    """Status and standard error of ``pykvm arguments`` under ``limit``."""
    command = [*(prefix or []), "prlimit", limit, sys.executable, "-m", "pykvm", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(),
        env=environment,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("limit", "more", "status", "hint"),
    [
        ("--as=1000000000", ["-m", "4G"], 2, "raise the limit of memory (ulimit -v)"),
        ("--fsize=0", ["-m", "64M,shared=on"], 2, "raise the limit of the size of files"),
    ],
)
def test_a_limit_is_named(bare_kernel: Path, limit: str, more: list[str], status: int, hint: str):
    ended, err = run(limit, "boot", "--kernel", bare_kernel, "--append", "hello", *more)
    assert (ended, err.count("\n")) == (status, 1)
    assert hint in err


def test_files_that_run_out_at_any_point_end_the_run_with_their_name(
    bare_kernel: Path, tmp_path: Path
):
    """From as many as Python itself needs to enough."""
    (tmp_path / "d.img").write_bytes(bytes(512))
    boot = ["boot", "--kernel", bare_kernel, "--append", "hello", "--disk", tmp_path / "d.img"]
    told = 0
    for files in range(6, 40):
        status, err = run(f"--nofile={files}", *boot)
        if status == 0:
            break
        if err.startswith("pykvm: "):  # else Python could not start
            told += 1
            assert "internal" not in err
            assert "ulimit -n" in err
            assert status in (2, 125)
    assert status == 0
    assert told


def test_cpu_time_that_is_over_ends_a_run_in_order(bare_kernel: Path):
    status, err = run("--cpu=5", "boot", "--kernel", bare_kernel, "--append", "spin")
    assert (status, err) == (
        152,
        "pykvm: ended by SIGXCPU: the limit of CPU time (ulimit -t) is reached\n",
    )


@pytest.fixture
def ordinary() -> list[str]:
    """What to put before a command so that threads are limited for it."""
    if os.geteuid() != 0:
        return []
    if subprocess.run([*ORDINARY, sys.executable, "-c", ""], check=False).returncode:
        pytest.skip("no user can be made of root here")
    return ORDINARY


def test_threads_that_run_out_at_any_point_end_the_run_with_their_name(
    bare_kernel: Path, tmp_path: Path, ordinary: list[str]
):
    """From none at all to enough; an ordinary user has other processes, which count."""
    tmp_path.chmod(0o777)
    boot = ["boot", "--kernel", bare_kernel, "--append", "hello", "--monitor", tmp_path / "m"]
    for threads in range(1, 12 if ordinary else 2):
        status, err = run(f"--nproc={threads}", *boot, prefix=ordinary)
        if status == 0:
            break
        assert "internal" not in err
        assert "ulimit -u" in err
        assert status in (77, 125)
    else:
        assert not ordinary, "no number of threads was enough"


def test_the_doctor_names_a_limit_of_threads(ordinary: list[str]):
    done = subprocess.run(
        [*ordinary, "prlimit", "--nproc=1", sys.executable, "-m", "pykvm", "doctor"],
        check=False,
        capture_output=True,
        text=True,
        timeout=patience(),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 77
    assert "no thread for vCPU 0" in done.stdout
