"""The virtio-blk disk, used by Linux."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
)

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

MIB = 1 << 20


def image(folder: Path, size: int, name: str = "d.img", seed: int = 1) -> Path:
    """A disk of reproducible random data."""
    path = folder / name
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()


def test_the_guest_reads_the_contents_of_the_file(boot, tmp_path):
    """Two disks, one of them read-only; reads, writes, serials, statistics."""
    first, second = image(tmp_path, 4 * MIB), image(tmp_path, MIB, "second.img", seed=2)
    before, untouched = first.read_bytes(), second.read_bytes()
    stats = tmp_path / "stats.json"
    script = """
        cat /sys/block/vda/serial; echo
        cat /sys/block/vdb/ro
        grep vd /proc/partitions
        md5sum </dev/vda
        md5sum </dev/vdb
        dd if=/dev/vdb of=/dev/vda bs=64k count=4 seek=8 conv=fsync,notrunc 2>/dev/null
        dd if=/dev/vda of=/dev/vdb bs=4k count=1 conv=fsync,notrunc 2>/dev/null && echo written
        exit 0
    """
    disks = ["--disk", f"{first},serial=FIRST", "--disk", f"{second},readonly=on"]
    done = boot(*disks, "--stats", str(stats), "--exec", script)
    lines = done.stdout.split()
    assert lines[:2] == [b"FIRST", b"1"]
    assert tuple(lines[4:6]) == (b"4096", b"vda")
    assert tuple(lines[8:10]) == (b"1024", b"vdb")
    assert lines[10] == md5(before)
    assert lines[12] == md5(untouched)
    assert b"written" not in lines
    assert second.read_bytes() == untouched
    at = 8 * 64 * 1024
    expected = before[:at] + untouched[: 4 * 65536] + before[at + 4 * 65536 :]
    assert first.read_bytes() == expected
    counts = json.loads(stats.read_text())["disks"]
    assert counts[0]["rd_bytes"] >= 4 * MIB
    assert counts[0]["wr_bytes"] == 4 * 65536
    assert counts[0]["flush_operations"] >= 1
    assert counts[0]["rd_total_time_ns"] > 0
    assert counts[1]["wr_operations"] == 0


def test_a_filesystem_survives(boot, tmp_path):
    """Make, mount, write, unmount, check, mount again, compare; and again in a second boot."""
    disk = tmp_path / "fs.img"
    with disk.open("wb") as file:
        file.truncate(16 * MIB)
    script = """
        set -e
        mke2fs -q -t ext4 -F /dev/vda
        mkdir -p /mnt; mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom of=/mnt/data bs=4k count=64 2>/dev/null
        md5sum </mnt/data >/mnt/sum
        umount /mnt
        e2fsck -fn /dev/vda >/dev/null 2>&1
        mount -t ext4 /dev/vda /mnt
        md5sum </mnt/data | cmp - /mnt/sum && echo same
    """
    assert boot("--disk", str(disk), "--exec", script).stdout == b"same\n"
    # The first run left it mounted: powering off must have unmounted it.
    script = (
        "e2fsck -n /dev/vda && mkdir -p /mnt && mount -t ext4 -o ro /dev/vda /mnt && cat /mnt/sum"
    )
    done = boot("--disk", f"{disk},readonly=on", "--exec", script)
    assert b"clean" in done.stdout
    assert len(done.stdout.split()[-2]) == 32


def test_fio(boot, tmp_path):
    """fio verifies its data, and neither notification nor interrupt makes an exit."""
    disk = image(tmp_path, 8 * MIB)
    stats = [tmp_path / "few.json", tmp_path / "many.json"]
    fio = (
        "fio --name=t --filename=/dev/vda --rw=randwrite --bs=4k --ioengine={} --iodepth=8 "
        "--direct=1 --number_ios={} --verify=crc32c --do_verify=1 --minimal >/dev/null && echo ok"
    )
    for path, engine, count in zip(stats, ("io_uring", "libaio"), (16, 80), strict=True):
        command = fio.format(engine, count)
        done = boot("--disk", str(disk), "--stats", str(path), "--exec", command)
        assert done.stdout == b"ok\n"
    few, many = (json.loads(path.read_text()) for path in stats)
    operations = [
        s["disks"][0]["wr_operations"] + s["disks"][0]["rd_operations"] for s in (few, many)
    ]
    assert operations[1] - operations[0] >= 128
    assert many["exits"]["MmioExit"] <= few["exits"]["MmioExit"] + 8


def test_without_msi(boot, tmp_path):
    """``pci=nomsi``: the disk works by INTx, through the I/O APIC as the MP table says."""
    disk = image(tmp_path, MIB)
    script = "md5sum </dev/vda; cat /proc/interrupts"
    done = boot("--disk", str(disk), "--append", "pci=nomsi", "--exec", script)
    assert done.stdout.startswith(md5(disk.read_bytes()))
    (line,) = [line for line in done.stdout.splitlines() if b"virtio" in line]
    assert b"IO-APIC" in line
    assert b"fasteoi" in line


def test_packed_rings(boot, tmp_path):
    """A filesystem on a packed queue, and on a small one without indirect descriptors."""
    first, second = tmp_path / "fs.img", image(tmp_path, MIB)
    first.write_bytes(bytes(2 * MIB))
    before, trace = second.read_bytes(), tmp_path / "trace.jsonl"
    script = """
        set -e
        mke2fs -q -t ext2 -F /dev/vda
        mkdir -p /mnt; mount -t ext2 /dev/vda /mnt
        head -c 300000 /dev/vdb >/mnt/data
        umount /mnt
        e2fsck -fn /dev/vda >/dev/null 2>&1
        mount -t ext2 -o ro /dev/vda /mnt
        md5sum </mnt/data
        md5sum </dev/vdb
        dd if=/mnt/data of=/dev/vdb bs=100k count=2 seek=5 conv=fsync,notrunc 2>/dev/null
    """
    plain = "packed=on,event-idx=off,indirect=off,queue-size=16"
    disks = ["--disk", f"{first},packed=on", "--disk", f"{second},{plain}"]
    done = boot(*disks, "--trace", f"{trace},events=*.negotiate", "--exec", script)
    assert done.stdout.split()[::2] == [md5(before[:300000]), md5(before)]
    at, end = 500 << 10, 700 << 10
    assert second.read_bytes() == before[:at] + before[: end - at] + before[end:]
    accepted = [
        int(event["features"], 16)
        for event in map(json.loads, trace.read_text().splitlines())
        if "features" in event
    ]
    ring = VIRTIO_F_RING_PACKED | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    assert [features & ring for features in accepted] == [ring, VIRTIO_F_RING_PACKED]


def test_a_disk_that_linux_takes_off_the_bus_can_be_found_again(boot, tmp_path):
    """Linux without ACPI then chooses the BARs' places itself: right above RAM."""
    disk = image(tmp_path, MIB)
    script = """
        set -e
        md5sum </dev/vda
        echo 1 >/sys/bus/pci/devices/0000:00:02.0/remove
        test ! -e /dev/vda && echo gone
        echo 1 >/sys/bus/pci/rescan
        md5sum </dev/vda
        dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=3 conv=fsync,notrunc 2>/dev/null
        exit 0
    """
    before = disk.read_bytes()
    done = boot("--disk", str(disk), "--exec", script)
    assert done.stdout.split() == [md5(before), b"-", b"gone", md5(before), b"-"]
    assert disk.read_bytes() == before[: 3 * 4096] + bytes(4096) + before[4 * 4096 :]
