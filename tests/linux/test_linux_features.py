"""Linux on a disk with the fewest features, and on a disk with all features."""

import hashlib
import random
from pathlib import Path

import pytest
from patience import linux_patience

import pykvm
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_LIFETIME
from pykvm.devices.virtio_blk.features import offered
from pykvm.virtio.constants import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_VERSION_1,
)

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
OFF = {
    "seg_max": None,
    "discard": "off",
    "blk_size": False,
    "topology": False,
    "flush": False,
    "config_wce": False,
    "write_zeroes": False,
    "indirect_desc": False,
    "event_idx": False,
    "queue_reset": False,
}
ON = {
    "size_max": "64K",
    "cyls": 32,
    "heads": 8,
    "secs": 32,
    "lifetime": (1, 2, 3),
    "num_queues": 2,
    "packed": True,
    "in_order": True,
    "notification_data": True,
    "logical_block_size": 4096,
}
UNKNOWN_TO_LINUX = VIRTIO_BLK_F_LIFETIME | VIRTIO_F_IN_ORDER | VIRTIO_F_NOTIFICATION_DATA
"""As of Linux 6.1."""


@pytest.mark.parametrize("options", [OFF, ON], ids=["off", "on"])
def test_a_filesystem(options: dict, tmp_path: Path) -> None:
    path = tmp_path / "d.img"
    path.write_bytes(random.Random(1).randbytes(MIB))
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    config = pykvm.DiskConfig(path, **options)
    with pykvm.boot(disks=[config], timeout=linux_patience()) as guest:
        assert guest.run("md5sum < /dev/vda").text == f"{digest}  -"
        cache = guest.run("cat /sys/block/vda/cache_type").text
        discard = guest.run("blkdiscard /dev/vda", check=False)
        guest.run("mke2fs -q -t ext2 -b 4096 -E nodiscard -F /dev/vda")
        guest.run("seq 1 50000 > /tmp/data; mount -t ext2 /dev/vda /mnt")
        guest.run("dd if=/tmp/data of=/mnt/data bs=64k conv=fsync")
        guest.run("umount /mnt && e2fsck -fn /dev/vda && mount -t ext2 -o ro /dev/vda /mnt")
        guest.run("cmp /tmp/data /mnt/data")
        features = guest.run("cat /sys/block/vda/device/features").text
        stats = guest.disks[0].stats
    accepted = int(features[::-1], 2)  # a digit for each bit, the lowest first
    if options is OFF:
        assert cache == "write through"
        assert discard.status
        assert accepted == VIRTIO_F_VERSION_1
        assert (stats.unmap_operations, stats.zero_operations, stats.flush_operations) == (0, 0, 0)
    else:
        assert cache == "write back"
        assert discard.status == 0
        assert accepted == offered(config, readonly=False) & ~UNKNOWN_TO_LINUX | VIRTIO_F_VERSION_1
        assert stats.unmap_operations
        assert stats.flush_operations
    assert stats.wr_bytes >= MIB // 4
    counts = stats.as_dict().items()
    assert not any(count for name, count in counts if name.startswith(("failed_", "invalid_")))
