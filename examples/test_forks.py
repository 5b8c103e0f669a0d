"""Fifty guests, forked from one that has booted. In each a different write fails.

What ``sync`` has called durable can be read afterwards, or ``sync`` has failed.
"""

import os

import pytest

import pykvm

FORKS = int(os.environ.get("FORKS", "50"))
WORK = "cp /etc/passwd /mnt/a && sync /mnt/a && mv /mnt/a /mnt/b && sync"
LOOK = "echo 3 > /proc/sys/vm/drop_caches; cat /mnt/b"


@pytest.mark.parametrize("nth", range(1, FORKS + 1))
def test_a_failed_write_is_reported_or_harmless(
    nth: int, pykvm_guest: pykvm.Guest, pykvm_disk: pykvm.Disk
) -> None:
    rule = pykvm_disk.faults.add(pykvm.Fault(operation="write", nth=nth, count=1, errno="EIO"))
    durable = pykvm_guest.run(WORK, check=False).status == 0
    if durable:
        assert pykvm_guest.run(LOOK).text == pykvm_guest.run("cat /etc/passwd").text
    else:
        assert rule.strikes == 1
