"""Injected faults, and the reaction of Linux."""

import hashlib
import json
from pathlib import Path

import pytest
from patience import linux_patience

import pykvm

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
BLOCK = 4096
BAD_BLOCK = 273
"""The 18th block of the second MiB."""

FIO = (
    "fio --filename=/dev/vda --offset=1m --size=128k --bs=4k --ioengine=libaio --direct=1"
    " --iodepth=32 --iodepth_batch_submit=32 --iodepth_batch_complete_min=32"
    " --verify=crc32c --continue_on_error=read --output-format=json"
    " --name=write --rw=write --do_verify=0 --name=read --stonewall --rw=read"
)


def test_one_bad_sector_in_a_merged_read(tmp_path: Path) -> None:
    """fio writes 32 blocks and reads them back, all at once: one read fails, 31 are verified."""
    path = tmp_path / "d.img"
    path.write_bytes(bytes(2 * MIB))
    bad = pykvm.Fault(operation="read", sectors=BAD_BLOCK * 8 + 3, errno="EIO")
    # One page a request: the guest cannot merge them.
    disk = pykvm.DiskConfig(path, seg_max=1, size_max=4096, rerror="report", faults=[bad])
    with pykvm.boot(disks=[disk], timeout=linux_patience()) as guest:
        fio = guest.run(FIO, check=False)
        messages = guest.dmesg()
        dd = "dd if=/dev/vda bs=4k iflag=direct"
        again = guest.run(f"{dd} of=/dev/null skip={BAD_BLOCK} count=1", check=False)
        good = guest.run(f"{dd} skip=256 count=17 | md5sum").text
        stats = guest.disks[0].stats
    writer, reader = json.loads(fio.text[fio.text.index("{") :])["jobs"]
    assert (writer["total_err"], writer["write"]["total_ios"]) == (0, 32)
    assert (reader["total_err"], reader["first_error"]) == (1, 5)
    assert reader["read"]["total_ios"] == 32
    # 31 if the disk looks at the ring only when the guest has put all 32 there.
    assert stats.rd_merged >= 16

    assert again.status == 1
    assert stats.failed_rd_operations == 2, "one for fio, one for dd"
    (error,) = [line for line in messages.splitlines() if "I/O error, dev vda" in line]
    assert f"dev vda, sector {BAD_BLOCK * 8} op 0x0:(READ)" in error
    written = path.read_bytes()[MIB : MIB + 17 * BLOCK]
    assert good == f"{hashlib.md5(written, usedforsecurity=False).hexdigest()}  -"
