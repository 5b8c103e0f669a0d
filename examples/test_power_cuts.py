"""A file that was synced survives every legal power cut: docs/howto/find-crash-bugs.md."""

from collections.abc import Callable

import pytest

import pykvm
from pykvm.crash import Survivor, ext4
from pykvm.pytest_plugin.crash import CrashTest


def nothing_synced_is_lost(survivor: Survivor) -> None:
    if "synced" in survivor.marks:
        assert survivor.read("/f") == b"important\n"


def save(guest: pykvm.Guest, mark: Callable[[str], None]) -> None:
    guest.run("echo important > /mnt/f && sync -d /mnt/f")
    mark("synced")
    guest.run("echo later > /mnt/g")


@pytest.mark.pykvm(disk="16M", prepare=None)
def test_fsync_survives_a_power_cut(pykvm_crash: CrashTest) -> None:
    setup = "mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt && sync"
    recorded = pykvm_crash.record(setup, save)
    pykvm_crash.check(recorded, ext4, nothing_synced_is_lost, states=500)
