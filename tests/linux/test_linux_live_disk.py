"""A disk under a running Linux: its size changes, and a snapshot forgets its writes."""

import asyncio
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT
from patience import linux_patience
from qemu.qmp import QMPClient

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
DATA = "".join(f"{number}\n" for number in range(1, 20001)).encode()
GUEST = """
    set -e
    seq 1 20000 >/tmp/data
    dd if=/tmp/data of=/dev/vdb bs=4k seek=100 conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    md5sum </dev/vdb
    cat /sys/block/vda/size
    echo ready; read go
    cat /sys/block/vda/size
    dmesg | grep -o 'vda. new size: [0-9]* '
    echo end of the disk | dd of=/dev/vda bs=512 seek=65535 conv=fsync 2>/dev/null
    echo ready; read go
    cat /sys/block/vda/size
"""


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """One to be resized, and one to be left alone."""
    made = [tmp_path / name for name in ("sized", "base")]
    made[0].write_bytes(bytes(16 * MIB))
    made[1].write_bytes(random.Random(1).randbytes(MIB))
    return made


@pytest.fixture
def run(images: list[Path], tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    sized, base = images
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = ["--disk", f"{sized}", "--disk", f"{base},snapshot=on"]
    arguments += ["--monitor", str(tmp_path / "qmp")]
    command = [sys.executable, "-m", "pykvm", "boot", "guest"]
    command += ["--timeout", str(linux_patience())]
    process = subprocess.Popen(
        [*command, *arguments, "--exec", GUEST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        cwd=ROOT,
    )
    yield process
    process.kill()
    process.communicate()
    assert not list(temporary.iterdir())


async def resize(socket: Path, size: int, stop: bool) -> None:
    client = QMPClient("test")
    await client.connect(str(socket))
    if stop:
        await client.execute("stop")
    await client.execute("block_resize", {"device": "virtio0", "size": size})
    if stop:
        await client.execute("cont")
    await client.disconnect()


def until_ready(run: "subprocess.Popen[bytes]") -> list[bytes]:
    """What the guest prints until it waits."""
    assert run.stdout is not None
    lines = []
    while (line := run.stdout.readline().strip()) != b"ready":
        assert line or run.poll() is None, run.stderr and run.stderr.read()
        lines.append(line)
    return lines


def test_a_disk_grows_and_shrinks_and_a_snapshot_disk_forgets(
    run: "subprocess.Popen[bytes]", images: list[Path], tmp_path: Path
) -> None:
    sized, base = images
    before = base.read_bytes(), base.stat().st_mtime_ns
    assert run.stdin is not None
    digest, size = until_ready(run)
    at = 100 * 4096
    content = before[0][:at] + DATA + before[0][at + len(DATA) :]
    assert digest.split()[0].decode() == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert size == b"32768"

    asyncio.run(resize(tmp_path / "qmp", 32 * MIB, stop=False))
    run.stdin.write(b"go\n")
    run.stdin.flush()
    assert until_ready(run) == [b"65536", b"vda] new size: 65536"]
    content = sized.read_bytes()
    assert len(content) == 32 * MIB
    assert content[-512:].startswith(b"end of the disk\n")

    asyncio.run(resize(tmp_path / "qmp", 8 * MIB, stop=True))
    out, errors = run.communicate(b"go\n", timeout=linux_patience())
    assert (out.split(), run.returncode) == ([b"16384"], 0), errors
    assert b"Traceback" not in errors
    assert sized.stat().st_size == 8 * MIB
    assert (base.read_bytes(), base.stat().st_mtime_ns) == before
