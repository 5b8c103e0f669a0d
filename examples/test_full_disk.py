"""The host's disk is full: the guest stops at a write, and goes on once there is space.

With ``werror=stop`` no program in the guest notices anything.
"""

import pytest

import pykvm

DISK = pykvm.DiskConfig(blank=2 << 20, werror=pykvm.ErrorPolicy.STOP)


@pytest.mark.pykvm(disk=DISK, prepare=None)
def test_a_guest_waits_for_space(pykvm_guest: pykvm.Guest, pykvm_disk: pykvm.Disk) -> None:
    full = pykvm_disk.faults.add(pykvm.Fault(operation="write", errno="ENOSPC"))
    with pykvm_guest.popen("echo hello > /dev/vda && sync && echo done") as writer:
        error = pykvm_guest.wait_stopped()
        assert error.full
        assert pykvm_disk.io_status is pykvm.IoStatus.NOSPACE
        assert pykvm_disk.read(0, 5) == bytes(5)

        pykvm_disk.faults.remove(full)
        pykvm_guest.resume()
        assert writer.wait().text == "done"
    assert pykvm_disk.read(0, 5) == b"hello"
