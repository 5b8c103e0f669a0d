"""Linux queues requests in batches, and the disk joins them as its policy says.

Linux would join them itself, before the disk sees them. That is kept out of
the way in the two ways there are: the disk allows requests of one page only
(``seg-max=1,size-max=4096``), or the guest is told not to (``nomerges``).
"""

import json
from pathlib import Path
from struct import pack

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

BLOCK = 4096
BLOCKS = 64
BATCH = 32

# On every disk at once, writes block after block in batches, then the same with reads that are
# compared: each word of a block is to hold the block's offset.
SCRIPT = f"""
    set -e
    cd /sys/block
    for disk in vdb vdc vdd; do echo 2 >$disk/queue/nomerges; done
    cat vda/queue/max_segments vda/queue/max_segment_size
    fio --ioengine=libaio --direct=1 --rw=write --bs={BLOCK} --size={BLOCKS * BLOCK} \
        --iodepth={BATCH} --iodepth_batch_submit={BATCH} --iodepth_batch_complete_min={BATCH} \
        --verify=pattern --verify_pattern=%o --thread --minimal \
        --name=a --filename=/dev/vda --name=b --filename=/dev/vdb \
        --name=c --filename=/dev/vdc --name=d --filename=/dev/vdd >/dev/null
    echo verified
"""
DISKS = (
    "merge=sequential,seg-max=1,size-max=4096",
    "merge=sorted",
    "merge=sorted-batch",
    "merge=off",
)


def test_batches_are_merged_as_the_policy_says(boot, tmp_path: Path) -> None:
    images = [tmp_path / f"{index}.img" for index in range(len(DISKS))]
    options = []
    for path, policy in zip(images, DISKS, strict=True):
        path.write_bytes(bytes(BLOCKS * BLOCK))
        options += ["--disk", f"{path},{policy}"]
    stats = tmp_path / "stats.json"
    done = boot(*options, "--stats", str(stats), "--exec", SCRIPT)
    assert done.stdout.split() == [b"1", b"4096", b"verified"]
    expected = b"".join(pack("<Q", at) * (BLOCK // 8) for at in range(0, BLOCKS * BLOCK, BLOCK))
    disks = json.loads(stats.read_text())["disks"]
    for path, disk in zip(images, disks, strict=True):
        assert path.read_bytes() == expected
        # The guest joined nothing: one request for each block. It reads partition tables too.
        assert disk["wr_operations"] == BLOCKS
        assert disk["rd_operations"] >= BLOCKS
        assert disk["wr_bytes"] == BLOCKS * BLOCK
    sequential, sorted_, sorted_batch, off = disks
    for disk in (sequential, sorted_):
        assert 0 < disk["rd_merged"] < disk["rd_operations"]
        assert 0 < disk["wr_merged"] < BLOCKS
    assert 0 < sorted_batch["wr_merged"] < BLOCKS
    assert sorted_batch["rd_merged"] == 0
    assert (off["rd_merged"], off["wr_merged"]) == (0, 0)
