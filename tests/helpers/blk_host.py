"""Features of hosts: block devices, O_DIRECT."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import patience

BLKROSET = 0x125D


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
        if not readonly:
            _let_be_written(device)
        yield device
    finally:
        subprocess.run([losetup, "--detach", device], check=True, timeout=patience())


def _let_be_written(device: str) -> None:
    """Make a loop device writable: an earlier user may have left it read-only."""
    with open(device, "rb") as file:
        fcntl.ioctl(file, BLKROSET, struct.pack("i", 0))


@contextmanager
def filesystem(folder: Path, block: int) -> Iterator[Path]:
    """A fresh filesystem on a device with logical blocks of ``block`` bytes."""
    mke2fs = shutil.which("mke2fs")
    if mke2fs is None:
        pytest.skip("mke2fs is missing")
    backing, mounted = folder / "backing", folder / "mounted"
    with backing.open("wb") as file:
        file.truncate(8 << 20)
    mounted.mkdir()
    with loop_device(backing, block) as device:
        subprocess.run(
            [mke2fs, "-q", "-t", "ext4", "-b", "4096", device], check=True, timeout=patience()
        )
        with _mount(mounted, device):
            yield mounted


@contextmanager
def overlay_of(folder: Path, below: Path) -> Iterator[Path]:
    """An overlay filesystem, mounted in ``folder``, whose files are on the filesystem ``below``."""
    merged = folder / "merged"
    places = {name: below / name for name in ("lowerdir", "upperdir", "workdir")}
    for place in (merged, *places.values()):
        place.mkdir()
    options = ",".join(f"{name}={place}" for name, place in places.items())
    with _mount(merged, "overlay", "-t", "overlay", "-o", options):
        yield merged


@contextmanager
def _mount(place: Path, *arguments: str) -> Iterator[None]:
    mount = subprocess.run(
        ["mount", *arguments, place], capture_output=True, check=False, timeout=patience()
    )
    if mount.returncode:
        pytest.skip(f"no mount here: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True, timeout=patience())


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
