"""The imports of a run: they take most of the time until the first instruction of the guest."""

import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.bare import build_bare_guest
from pykvm.kvm.probe_cache import host_traits
from pykvm.kvm.system import Kvm

pytestmark = pytest.mark.kvm

SCRIPT = """
import sys
from pykvm.cli.main import main
status = main(["boot", "--kernel", sys.argv[1], "--append", "hello 7", *sys.argv[2:]])
print(status, *sorted(sys.modules), file=sys.stderr)
"""
ALWAYS_HEAVY = {"asyncio", "dataclasses", "inspect", "shutil", "subprocess", "tomllib", "cffi"}
FOR_SOME = {"argparse", "base64", "ctypes", "datetime", "difflib", "importlib.resources", "json"}
FOR_SOME |= {"pathlib", "re", "tempfile", "termios", "traceback", "typing"}


@pytest.fixture(autouse=True)
def _known_host() -> None:
    """The session's cache is new, and the probe imports more than a start."""
    with Kvm.open() as kvm:
        host_traits(kvm)


def imported(*options: str) -> set[str]:
    """The modules of a process that has booted the bare guest, with ``options``."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(build_bare_guest()), *options],
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    status, *modules = done.stderr.splitlines()[-1].split()
    assert status == "7"
    return set(modules)


def test_a_kernel_alone_needs_no_module_that_takes_long_to_import():
    modules = imported()
    # What site-packages' own .pth files import is not ours to judge.
    assert modules & (ALWAYS_HEAVY | FOR_SOME) == set()


def test_modules_of_disks_bundles_and_reports_are_imported_only_for_them():
    modules = imported()
    for name in ("devices", "monitor", "pci.virtio_pci", "x86.payload", "x86.initrd"):
        assert f"pykvm.{name}" not in modules
    for name in ("exec_session", "escape_keys", "report", "stop_reporter", "terminal"):
        assert f"pykvm.cli.boot.{name}" not in modules
    assert "pykvm.cli.boot.output_files" not in modules
    for name in ("disk_keys", "parser"):
        assert f"pykvm.cli.{name}" not in modules
    for name in ("bundle", "disks"):
        assert f"pykvm.machine.{name}" not in modules


def test_a_disk_needs_no_module_that_takes_long_either(tmp_path: Path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    modules = imported("--disk", str(disk))
    assert "pykvm.devices.virtio_blk.device" in modules
    assert not modules & ALWAYS_HEAVY
