"""A flaky disk under random writes: some requests fail, some take long, and no byte is lost.

The faults and the writes are random, and the same in each run, because both have a seed.
"""

import os
import random

import pytest

import pykvm

BLOCK, BLOCKS = 4096, 16
WRITES = int(os.environ.get("WRITES", "100"))
FLAKY = pykvm.FaultPlan(
    [
        pykvm.Fault(operation="write", probability=0.3, errno="EIO"),
        pykvm.Fault(operation="write", probability=0.3, delay_ms=20),
    ],
    seed=2014,
)
WRITE = """
write() {
    until dd if=/tmp/letters of=/dev/vda bs=4k skip=$1 seek=$2 count=$3 oflag=direct 2>/dev/null
    do :; done
}
"""


@pytest.mark.pykvm(disk=pykvm.DiskConfig(blank=BLOCK * BLOCKS, faults=FLAKY), prepare=None)
def test_writes_that_are_tried_again_leave_the_right_content(
    pykvm_guest: pykvm.Guest, pykvm_disk: pykvm.Disk
) -> None:
    dice = random.Random(2014)
    letters = dice.randbytes(BLOCK * 2 * BLOCKS)
    content = bytearray(BLOCK * BLOCKS)
    script = WRITE
    for _ in range(WRITES):
        source, count = dice.randrange(BLOCKS), dice.randint(1, 4)
        target = dice.randrange(BLOCKS - count)
        begin, end = target * BLOCK, (target + count) * BLOCK
        content[begin:end] = letters[source * BLOCK :][: end - begin]
        script += f"write {source} {target} {count}\n"
    pykvm_guest.push(letters, "/tmp/letters")
    pykvm_guest.run(script)

    assert pykvm_disk.read(0, len(content)) == content
    assert all(rule.strikes for rule in pykvm_disk.faults.rules)
