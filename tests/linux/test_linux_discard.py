"""Discards, zeroes and large blocks as Linux uses them, and the host's files afterwards."""

import json
import random
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
SLACK = 1 << 16
"""Bytes that the host's filesystem may need to know of holes."""
SCRIPT = """
    set -e
    blkdiscard -o 1M -l 1M /dev/vda
    blkdiscard -z -o 3M -l 1M /dev/vda
    fallocate --punch-hole -o 5M -l 1M /dev/vda

    mke2fs -q -t ext4 -b 4096 -E nodiscard -F /dev/vdb
    mkdir -p /mnt
    mount -t ext4 -o discard /dev/vdb /mnt
    dd if=/dev/vda of=/mnt/data bs=64k count=32 2>/dev/null
    sync
    fallocate --punch-hole -o 512K -l 1M /mnt/data
    sync
    umount /mnt
    e2fsck -fn /dev/vdb >/dev/null 2>&1 && echo clean

    mke2fs -q -t ext4 -E nodiscard -F /dev/vdc
    mount -t ext4 /dev/vdc /mnt
    echo kept >/mnt/file
    fstrim /mnt
    umount /mnt
    e2fsck -fn /dev/vdc >/dev/null 2>&1 && echo clean
    mount -t ext4 /dev/vdc /mnt
    cat /mnt/file
    cd /sys/block/vdc/queue
    cat logical_block_size physical_block_size minimum_io_size optimal_io_size discard_granularity
"""


def image(folder: Path, name: str, size: int) -> Path:
    """A disk of random data, all of it allocated."""
    path = folder / name
    path.write_bytes(random.Random(name).randbytes(size))
    return path


def test_space_comes_back_and_zeros_are_zeros(boot, tmp_path):
    raw, punched, trimmed = (image(tmp_path, f"{name}.img", 8 * MIB) for name in "abc")
    before = raw.read_bytes()
    allocated = [path.stat().st_blocks for path in (raw, punched, trimmed)]
    stats = tmp_path / "stats.json"
    blocks = "logical_block_size=4096,physical_block_size=16K,min_io_size=16K,opt_io_size=64K"
    disks = [str(raw), str(punched), f"{trimmed},{blocks},discard_granularity=8K"]
    arguments = [part for disk in disks for part in ("--disk", disk)]
    done = boot(*arguments, "--stats", str(stats), "--exec", SCRIPT)
    sizes = [b"4096", b"16384", b"16384", b"65536", b"8192"]
    assert done.stdout.split() == [b"clean", b"clean", b"kept", *sizes]
    counts = json.loads(stats.read_text())["disks"]
    freed = [
        512 * (was - path.stat().st_blocks)
        for was, path in zip(allocated, (raw, punched, trimmed), strict=True)
    ]

    # blkdiscard; blkdiscard -z, which keeps the space; fallocate, which gives it back.
    after = raw.read_bytes()
    assert after[3 * MIB : 4 * MIB] == after[5 * MIB : 6 * MIB] == bytes(MIB)
    for start, end in ((0, 1), (2, 3), (4, 5), (6, 8)):
        assert after[start * MIB : end * MIB] == before[start * MIB : end * MIB]
    assert 2 * MIB - SLACK <= freed[0] < 3 * MIB - SLACK
    assert (counts[0]["unmap_bytes"], counts[0]["zero_bytes"]) == (MIB, 2 * MIB)

    # A hole in a file of a filesystem that discards what it no longer needs.
    assert counts[1]["unmap_bytes"] >= MIB
    assert freed[1] >= MIB - SLACK

    # fstrim, and requests of nothing but whole blocks.
    assert counts[2]["unmap_bytes"] >= 3 * MIB
    assert freed[2] >= 3 * MIB
    for disk in counts:
        assert not any(n for name, n in disk.items() if name.startswith(("failed_", "invalid_")))
