"""Skips tests that need QEMU where QEMU cannot run."""

import shutil
import subprocess

import pytest

from pykvm.bare import build_bare_guest
from pykvm.bench.disk.tools.qemu import PROGRAM
from pykvm.bench.disk.tools.qemu_cpu import cpu_model
from pykvm.errors import HostError


def skip_where_qemu_runs_no_guest(done: "subprocess.CompletedProcess[str]") -> None:
    """Skip the test, with the reason, if a ``pykvm bench`` reported that QEMU cannot run."""
    if done.returncode == HostError.exit_status and "cannot compare with QEMU" in done.stderr:
        pytest.skip(done.stderr)


def require_qemu(*machines: str) -> None:
    """Skip the test, with the reason, unless QEMU is there and runs a guest in ``machines``."""
    program = shutil.which(PROGRAM)
    if program is None:
        pytest.skip("QEMU is not installed")
    for machine in machines:
        try:
            cpu_model(program, machine, build_bare_guest())
        except HostError as error:
            pytest.skip(error.message)
