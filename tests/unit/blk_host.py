"""What a host has or has not: block devices, O_DIRECT."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import patience


@contextmanager
def loop_device(backing: Path, block: int = 512, readonly: bool = False) -> Iterator[str]:
    """A loop device over the file ``backing``, with logical blocks of ``block`` bytes."""
    losetup = shutil.which("losetup")
    if losetup is None or os.geteuid() != 0:
        pytest.skip("loop devices need root and losetup")
    command = [losetup, "--find", "--show", "--sector-size", str(block), str(backing)]
    if readonly:
        command.insert(1, "--read-only")
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience())
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run([losetup, "--detach", device], check=True, timeout=patience())


def require_direct(folder: Path) -> None:
    """Skip where the filesystem of ``folder`` has no O_DIRECT."""
    probe = folder / "probe"
    probe.write_bytes(bytes(4096))
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {folder}: {error.strerror}")
    finally:
        probe.unlink()
