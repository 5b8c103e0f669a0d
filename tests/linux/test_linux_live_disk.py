"""A disk under a running Linux: its size changes, and a temporary disk forgets its writes."""

import hashlib
import random
from pathlib import Path

import pytest
from patience import linux_patience

import pykvm

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
UNTIL = "until [ $(cat /sys/block/vda/size) = {} ]; do sleep 0.1; done"
"""Linux hears of a new size by an interrupt."""


def test_a_disk_grows_and_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "d.img"
    path.write_bytes(bytes(16 * MIB))
    with pykvm.boot(disks=[path], timeout=linux_patience()) as guest:
        (disk,) = guest.disks
        assert guest.run("cat /sys/block/vda/size").text == "32768"
        disk.resize(32 * MIB)
        guest.run(UNTIL.format(65536))
        assert "vda] new size: 65536 " in guest.dmesg()
        guest.run("dd of=/dev/vda bs=512 seek=65535 conv=fsync", input=b"end of the disk\n")
        content = path.read_bytes()
        assert len(content) == 32 * MIB
        assert content[-512:].startswith(b"end of the disk\n")
        guest.pause()
        disk.resize(8 * MIB)
        guest.resume()
        guest.run(UNTIL.format(16384))
    assert path.stat().st_size == 8 * MIB


def test_a_temporary_disk_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, path = tmp_path / "temporary", tmp_path / "d.img"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    path.write_bytes(random.Random(1).randbytes(MIB))
    before = path.read_bytes(), path.stat().st_mtime_ns
    disk = pykvm.DiskConfig(path, snapshot=True)
    with pykvm.boot(disks=[disk], timeout=linux_patience()) as guest:
        guest.run("seq 1 20000 > /tmp/data")
        guest.run("dd if=/tmp/data of=/dev/vda bs=4k seek=100 conv=fsync")
        guest.run("echo 3 > /proc/sys/vm/drop_caches")
        digest = guest.run("md5sum < /dev/vda").text
    data = "".join(f"{number}\n" for number in range(1, 20001)).encode()
    at = 100 * 4096
    content = before[0][:at] + data + before[0][at + len(data) :]
    assert digest == f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}  -"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert not list(temporary.iterdir())
