"""Linux queues requests in batches, and the disk joins them as its policy says.

Linux would join them itself, before the disk sees them. That is kept out of
the way in the two ways there are: the disk allows requests of one page only
(``seg_max=1, size_max=4096``), or the guest is told not to (``nomerges``).
"""

from dataclasses import dataclass
from pathlib import Path
from struct import pack

import pytest
from patience import linux_patience

import pykvm

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

BLOCK = 4096
BLOCKS = 64
BATCH = 32
CONTENT = b"".join(pack("<Q", at) * (BLOCK // 8) for at in range(0, BLOCKS * BLOCK, BLOCK))
"""Each word of a block is the block's offset."""
FIO = (
    f"fio --name=t --filename=/dev/vda --ioengine=libaio --direct=1 --rw=write --bs={BLOCK} "
    f"--size={BLOCKS * BLOCK} --iodepth={BATCH} --iodepth_batch_submit={BATCH} "
    f"--iodepth_batch_complete_min={BATCH} --verify=pattern --verify_pattern=%o --minimal"
)
"""Writes block after block in batches, then the same with reads that are compared."""


@dataclass(frozen=True)
class Policy:
    """A disk with some ``options``, and which requests it joins."""

    options: dict[str, object]
    reads: bool
    writes: bool


POLICIES = {
    "sequential": Policy({"merge": "sequential", "seg_max": 1, "size_max": 4096}, True, True),
    "sorted": Policy({"merge": "sorted"}, True, True),
    "sorted-batch": Policy({"merge": "sorted-batch"}, False, True),
    "off": Policy({"merge": "off"}, False, False),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_batches_are_merged_as_the_policy_says(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "d.img"
    path.write_bytes(bytes(BLOCKS * BLOCK))
    disk = pykvm.DiskConfig(path, **policy.options)
    with pykvm.boot(disks=[disk], timeout=linux_patience()) as guest:
        if disk.seg_max:
            limits = guest.run("cd /sys/block/vda/queue; cat max_segments max_segment_size")
            assert limits.text == "1\n4096"
        else:
            guest.run("echo 2 > /sys/block/vda/queue/nomerges")
        guest.run(FIO)
        stats = guest.disks[0].stats
    assert path.read_bytes() == CONTENT
    # The guest joined nothing: one request for each block. It reads partition tables too.
    assert stats.wr_operations == BLOCKS
    assert stats.rd_operations >= BLOCKS
    assert stats.wr_bytes == BLOCKS * BLOCK
    assert stats.rd_merged < stats.rd_operations
    assert stats.wr_merged < BLOCKS
    assert (stats.rd_merged > 0, stats.wr_merged > 0) == (policy.reads, policy.writes)
