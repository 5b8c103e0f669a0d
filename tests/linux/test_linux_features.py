"""Linux on a disk with the fewest features, and on a disk with all features."""

import hashlib
import json
import random

import pytest

from pykvm.cli.disk_keys import parse_disk
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_LIFETIME
from pykvm.devices.virtio_blk.features import offered
from pykvm.virtio.constants import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_VERSION_1,
)

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
OFF = (
    "seg-max=off,blk-size=off,topology=off,flush=off,config-wce=off,discard=off,write-zeroes=off,"
    "indirect-desc=off,event-idx=off,queue-reset=off"
)
ON = (
    "size-max=64K,cyls=32,heads=8,secs=32,lifetime=1:2:3,num-queues=2,packed=on,in-order=on,"
    "notification-data=on,logical-block-size=4096"
)
UNKNOWN_TO_LINUX = VIRTIO_BLK_F_LIFETIME | VIRTIO_F_IN_ORDER | VIRTIO_F_NOTIFICATION_DATA
"""As of Linux 6.1."""
SCRIPT = """
    set -e
    mkdir -p /mnt
    seq 1 50000 >/tmp/data
    for disk in vda vdb; do
        md5sum </dev/$disk
        cat /sys/block/$disk/cache_type
        blkdiscard /dev/$disk 2>/dev/null && echo discarded
        mke2fs -q -t ext2 -b 4096 -E nodiscard -F /dev/$disk
        mount -t ext2 /dev/$disk /mnt
        dd if=/tmp/data of=/mnt/data bs=64k conv=fsync 2>/dev/null
        umount /mnt
        e2fsck -fn /dev/$disk >/dev/null 2>&1
        mount -t ext2 -o ro /dev/$disk /mnt
        cmp /tmp/data /mnt/data
        umount /mnt
    done
    cat /sys/block/vd[ab]/device/features
"""


def bits(sysfs: bytes) -> int:
    """What /sys/…/features says: a digit for each bit, the lowest first."""
    return int(sysfs[::-1], 2)


def test_everything_off_and_everything_on(boot, tmp_path):
    stats, disks, before = tmp_path / "stats", [], []
    for name, options in (("off", OFF), ("on", ON)):
        path = tmp_path / name
        path.write_bytes(random.Random(name).randbytes(MIB))
        before.append(path.read_bytes())
        disks += ["--disk", f"{path},{options}"]
    done = boot(*disks, "--stats", str(stats), "--exec", SCRIPT)
    lines = done.stdout.splitlines()
    sums = [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in before]
    plain = [f"{sums[0]}  -", "write through"]
    rich = [f"{sums[1]}  -", "write back", "discarded"]
    assert [line.decode() for line in lines[:-2]] == plain + rich
    offered_on = offered(parse_disk(f"x,{ON}"), readonly=False)
    accepted = offered_on & ~UNKNOWN_TO_LINUX | VIRTIO_F_VERSION_1
    assert [bits(line) for line in lines[-2:]] == [VIRTIO_F_VERSION_1, accepted]
    off, on = json.loads(stats.read_text())["disks"]
    assert (off["unmap_operations"], off["zero_operations"], off["flush_operations"]) == (0, 0, 0)
    assert on["unmap_operations"]
    assert on["flush_operations"]
    for counts in (off, on):
        assert counts["wr_bytes"] >= MIB // 4
        assert not any(n for name, n in counts.items() if name.startswith(("failed_", "invalid_")))
