"""A disk grows while the guest runs: the guest notices, and uses the new space."""

import pytest

import pykvm

OLD, NEW = 2 << 20, 8 << 20


@pytest.mark.pykvm(prepare=None)
def test_a_guest_uses_the_space_that_its_disk_gains(
    pykvm_guest: pykvm.Guest, pykvm_disk: pykvm.Disk
) -> None:
    beyond = f"echo hello | dd of=/dev/vda bs=512 seek={OLD // 512} conv=sync,fsync"
    assert b"No space left" in pykvm_guest.run(beyond, check=False).stderr

    pykvm_disk.resize(NEW)
    pykvm_guest.run(f"until [ $(cat /sys/block/vda/size) = {NEW // 512} ]; do sleep 0.01; done")
    pykvm_guest.run(beyond)
    assert pykvm_disk.read(OLD, 5) == b"hello"
