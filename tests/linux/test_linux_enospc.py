"""A host filesystem that is really full, under a Linux guest that writes and syncs.

The images are sparse, on a tmpfs of their own with two files of ballast. Each
is as large as what the guest writes to one disk, and not as what it writes to
both. When it is ready, the rest is filled up: its writes then stop it, until
ballast goes and somebody says ``cont``. No write may be lost on the way.
"""

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from patience import linux_patience, patience
from qemu.qmp import EventListener, QMPClient

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.linux,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root"),
]

LINES = 100_000
DATA = "".join(f"{number}\n" for number in range(1, LINES + 1)).encode()
IN_ITS_OWN_FILESYSTEM = """
    mount -t tmpfs -o size=16m none "$0" && cd "$0" &&
    truncate -s 16M fs.img && truncate -s 4M raw.img &&
    dd if=/dev/zero of=first bs=1M count=1 status=none && cp first second &&
    exec "$@"
"""
GUEST = f"""
    set -e
    seq 1 {LINES} >/tmp/data
    mke2fs -q -t ext4 -F /dev/vda
    mkdir -p /mnt; mount -t ext4 -o noinit_itable /dev/vda /mnt; sync
    echo ready; read go
    dd if=/tmp/data of=/mnt/data bs=64k conv=fsync 2>/dev/null
    mount -o remount,ro /mnt
    dd if=/tmp/data of=/dev/vdb bs=64k conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    md5sum </mnt/data
    head -c {len(DATA)} /dev/vdb | md5sum
    umount /mnt
    e2fsck -fn /dev/vda >/dev/null 2>&1 && echo clean
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the run mounts its filesystem, if it may."""
    folder = tmp_path / "full"
    folder.mkdir()
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(folder)],
        capture_output=True,
        check=False,
        timeout=patience(),
    )
    if probe.returncode:
        pytest.skip(f"no private mount here: {probe.stderr.decode().strip()}")
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """The guest, on the first disk with the default policy, on the second with werror=stop."""
    disks = [f"{folder}/fs.img", f"{folder}/raw.img,werror=stop"]
    pykvm = [sys.executable, "-m", "pykvm", "boot", "guest", "--timeout", str(linux_patience())]
    pykvm += ["--disk", disks[0], "--disk", disks[1], "--monitor", str(tmp_path / "qmp")]
    unshare = ["unshare", "--mount", "sh", "-c", IN_ITS_OWN_FILESYSTEM, str(folder)]
    process = subprocess.Popen(
        [*unshare, *pykvm, "--exec", GUEST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    yield process
    process.kill()
    process.communicate()


def fill_up(path: Path) -> None:
    """Take all the space that ``path``'s filesystem has left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


async def stopped(client: QMPClient, events: EventListener, device: str) -> None:
    """The guest stops because ``device`` has no space, and says so in the usual ways."""
    while (event := await events.get())["event"] == "BLOCK_IO_ERROR":
        data = event["data"]
        assert (data["device"], data["operation"], data["action"]) == (device, "write", "stop")
        assert data["nospace"] is True
        assert data["errno"] == errno.ENOSPC
    assert event["event"] == "STOP"
    assert await client.execute("query-status") == {"status": "io-error", "running": False}
    blocks: Any = await client.execute("query-block")
    status = {block["device"]: block["io-status"] for block in blocks}
    assert status.pop(device) == "nospace"
    assert set(status.values()) == {"ok"}


async def make_space(run: "subprocess.Popen[bytes]", inside: Path, socket: Path) -> None:
    """Drives the guest from "ready" to its last write."""
    client = QMPClient("test")
    await client.connect(str(socket))
    with client.listener(("BLOCK_IO_ERROR", "STOP", "RESUME")) as events:
        fill_up(inside / "rest")
        assert run.stdin is not None
        run.stdin.write(b"go\n")
        run.stdin.flush()
        await stopped(client, events, "virtio0")
        # In vain: it stops again.
        await client.execute("cont")
        assert (await events.get())["event"] == "RESUME"
        await stopped(client, events, "virtio0")
        (inside / "first").unlink()
        await client.execute("cont")
        assert (await events.get())["event"] == "RESUME"
        await stopped(client, events, "virtio1")
        for name in ("second", "rest"):
            (inside / name).unlink()
        await client.execute("cont")
        assert (await events.get())["event"] == "RESUME"
    await client.disconnect()


def test_a_full_filesystem(run: "subprocess.Popen[bytes]", folder: Path, tmp_path: Path) -> None:
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n", run.stderr and run.stderr.read()
    inside = Path(f"/proc/{run.pid}/root{folder}")
    with (inside / "raw.img").open("rb") as raw:
        asyncio.run(asyncio.wait_for(make_space(run, inside, tmp_path / "qmp"), linux_patience()))
        out, errors = run.communicate(timeout=linux_patience())
        assert raw.read(len(DATA)) == DATA
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest().encode() + b"  -"
    assert out.splitlines() == [md5, md5, b"clean"], errors
    assert run.returncode == 0
    assert b"Traceback" not in errors
