"""Injected faults, and the reaction of Linux."""

import hashlib
import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20
BLOCK = 4096
BAD_BLOCK = 273
"""The 18th block of the second MiB."""

FAULTS = f"""
[[fault]]
operation = "read"
sectors = {BAD_BLOCK * 8 + 3}
errno = "EIO"
"""

FIO = (
    "fio --filename=/dev/vda --offset=1m --size=128k --bs=4k --ioengine=libaio --direct=1"
    " --iodepth=32 --iodepth_batch_submit=32 --iodepth_batch_complete_min=32"
    " --verify=crc32c --continue_on_error=read --output-format=json"
    " --name=write --rw=write --do_verify=0 --name=read --stonewall --rw=read"
)


def test_one_bad_sector_in_a_merged_read(boot, tmp_path: Path):
    """fio writes 32 blocks and reads them back, all at once: one read fails, 31 are verified."""
    disk, faults, stats = (tmp_path / name for name in ("d.img", "faults.toml", "stats.json"))
    with disk.open("wb") as file:
        file.truncate(2 * MIB)
    faults.write_text(FAULTS)
    script = f"""
        {FIO} 2>&1
        echo =
        dmesg | grep 'I/O error'
        dd if=/dev/vda of=/dev/null bs=4k skip={BAD_BLOCK} count=1 iflag=direct 2>&1 || echo again
        dd if=/dev/vda bs=4k skip=256 count=17 iflag=direct 2>/dev/null | md5sum
    """
    # One page a request: the guest cannot merge them.
    options = f"{disk},seg-max=1,size-max=4096,rerror=report,faults={faults}"
    done = boot("--disk", options, "--stats", str(stats), "--exec", script)
    report, _, rest = done.stdout.partition(b"=\n")
    writer, reader = json.loads(report[report.index(b"{") :])["jobs"]
    assert (writer["total_err"], writer["write"]["total_ios"]) == (0, 32)
    assert (reader["total_err"], reader["first_error"]) == (1, 5)
    assert reader["read"]["total_ios"] == 32

    counts = json.loads(stats.read_text())["disks"][0]
    # 31 if the disk looks at the ring only when the guest has put all 32 there.
    assert counts["rd_merged"] >= 16
    assert counts["failed_rd_operations"] == 2, "one for fio, one for dd"

    (error,) = [line for line in rest.splitlines() if b"dev vda" in line]
    assert f"dev vda, sector {BAD_BLOCK * 8} op 0x0:(READ)".encode() in error
    assert b"again\n" in rest
    before = disk.read_bytes()[MIB : MIB + 17 * BLOCK]
    digest = hashlib.md5(before, usedforsecurity=False).hexdigest()
    assert rest.endswith(f"{digest}  -\n".encode())
