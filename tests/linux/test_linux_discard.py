"""Discards, zeroes and large blocks as Linux uses them, and the host's files afterwards."""

import random
from pathlib import Path

import pytest
from patience import linux_patience

import pykvm

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
SLACK = 1 << 16
"""Bytes that the host's filesystem may need to know of holes."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of random data, all of it allocated."""
    path = tmp_path / "d.img"
    path.write_bytes(random.Random(1).randbytes(8 * MIB))
    return path


def allocated(path: Path) -> int:
    """The bytes that ``path`` occupies."""
    return 512 * path.stat().st_blocks


def problems(disk: pykvm.Disk) -> dict[str, int]:
    """The counters of what has failed or was invalid, without zeros."""
    return {
        name: count
        for name, count in disk.stats.as_dict().items()
        if count and name.startswith(("failed_", "invalid_"))
    }


def test_space_comes_back_and_zeros_are_zeros(image: Path) -> None:
    before, had = image.read_bytes(), allocated(image)
    with pykvm.boot(disks=[image], timeout=linux_patience()) as guest:
        guest.run("blkdiscard -o 1M -l 1M /dev/vda")
        guest.run("blkdiscard -z -o 3M -l 1M /dev/vda")  # keeps the space
        guest.run("fallocate --punch-hole -o 5M -l 1M /dev/vda")  # gives it back
        (disk,) = guest.disks
    after = image.read_bytes()
    assert after[3 * MIB : 4 * MIB] == after[5 * MIB : 6 * MIB] == bytes(MIB)
    for start, end in ((0, 1), (2, 3), (4, 5), (6, 8)):
        assert after[start * MIB : end * MIB] == before[start * MIB : end * MIB]
    assert 2 * MIB - SLACK <= had - allocated(image) < 3 * MIB - SLACK
    assert (disk.stats.unmap_bytes, disk.stats.zero_bytes) == (MIB, 2 * MIB)
    assert not problems(disk)


def test_a_filesystem_discards_the_space_of_a_hole(image: Path) -> None:
    had = allocated(image)
    with pykvm.boot(disks=[image], timeout=linux_patience()) as guest:
        guest.run("mke2fs -q -t ext4 -b 4096 -E nodiscard -F /dev/vda")
        guest.run("mount -t ext4 -o discard /dev/vda /mnt")
        guest.run("dd if=/dev/zero of=/mnt/data bs=64k count=32 && sync")
        guest.run("fallocate --punch-hole -o 512K -l 1M /mnt/data && sync")
        guest.run("umount /mnt && e2fsck -fn /dev/vda")
        (disk,) = guest.disks
    assert disk.stats.unmap_bytes >= MIB
    assert had - allocated(image) >= MIB - SLACK
    assert not problems(disk)


def test_fstrim_with_large_blocks(image: Path) -> None:
    """No request is smaller than a block: that would be an invalid one."""
    had = allocated(image)
    blocks = {"logical_block_size": 4096, "physical_block_size": "16K", "discard_granularity": "8K"}
    config = pykvm.DiskConfig(image, **blocks, min_io_size="16K", opt_io_size="64K")
    with pykvm.boot(disks=[config], timeout=linux_patience()) as guest:
        sizes = guest.run(
            "cd /sys/block/vda/queue; cat logical_block_size physical_block_size minimum_io_size "
            "optimal_io_size discard_granularity"
        ).text
        guest.run("mke2fs -q -t ext4 -E nodiscard -F /dev/vda && mount -t ext4 /dev/vda /mnt")
        guest.run("echo kept > /mnt/file && fstrim /mnt")
        guest.run("umount /mnt && e2fsck -fn /dev/vda && mount -t ext4 /dev/vda /mnt")
        assert guest.run("cat /mnt/file").text == "kept"
        (disk,) = guest.disks
    assert sizes.split() == ["4096", "16384", "16384", "65536", "8192"]
    assert disk.stats.unmap_bytes >= 3 * MIB
    assert had - allocated(image) >= 3 * MIB
    assert not problems(disk)
