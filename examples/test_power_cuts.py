"""A file that was synced survives every legal power cut: docs/howto/find-crash-bugs.md."""

from pathlib import Path

import pykvm
from pykvm.crash import Recorded, Survivor, ext4


def nothing_synced_is_lost(survivor: Survivor) -> None:
    if "synced" in survivor.marks:
        assert survivor.read("/f") == b"important\n"


def test_fsync_survives_a_power_cut(tmp_path: Path) -> None:
    with pykvm.boot(disks=["16M"]) as guest:
        guest.run("mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt && sync")
        with guest.disks[0].record() as recording:
            guest.run("echo important > /mnt/f && sync -d /mnt/f")
            recording.mark("synced")
            guest.run("echo later > /mnt/g")
            recording.save(tmp_path / "rec")
    report = Recorded(tmp_path / "rec").explore([ext4, nothing_synced_is_lost], most=500)
    assert not report.failures, str(report)
