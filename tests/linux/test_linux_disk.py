"""The virtio-blk disk, used by Linux."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from patience import linux_patience

import pykvm
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


def md5(data: bytes) -> str:
    """What ``md5sum`` prints for ``data``."""
    return f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}  -"


def test_the_guest_reads_and_writes_the_image(tmp_path: Path) -> None:
    first, second = image(tmp_path, 4 * MIB), image(tmp_path, MIB, "second.img", seed=2)
    before, untouched = first.read_bytes(), second.read_bytes()
    disks = [pykvm.DiskConfig(first, serial="FIRST"), pykvm.DiskConfig(second, readonly=True)]
    with pykvm.boot(disks=disks, timeout=linux_patience()) as guest:
        assert guest.run("cat /sys/block/vda/serial").text == "FIRST"
        assert guest.run("cat /sys/block/vd[ab]/size").text == "8192\n2048"
        assert guest.run("md5sum < /dev/vda; md5sum < /dev/vdb").text.splitlines() == [
            md5(before),
            md5(untouched),
        ]
        guest.run("dd if=/dev/vdb of=/dev/vda bs=64k count=4 seek=8 conv=fsync,notrunc")
        stats = guest.disks[0].stats
    at, end = 512 << 10, 768 << 10
    assert first.read_bytes() == before[:at] + untouched[: end - at] + before[end:]
    assert stats.rd_bytes >= 4 * MIB
    assert stats.wr_bytes == end - at
    assert stats.flush_operations >= 1
    assert stats.rd_total_time_ns > 0


def test_a_read_only_disk(tmp_path: Path) -> None:
    path = image(tmp_path, MIB)
    before = path.read_bytes()
    disk = pykvm.DiskConfig(path, readonly=True)
    with pykvm.boot(disks=[disk], timeout=linux_patience()) as guest:
        assert guest.run("cat /sys/block/vda/ro").text == "1"
        with pytest.raises(pykvm.CommandFailed):
            guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync,notrunc")
        assert guest.run("md5sum < /dev/vda").text == md5(before)
        assert guest.disks[0].stats.wr_operations == 0
    assert path.read_bytes() == before


def test_a_filesystem_survives(tmp_path: Path) -> None:
    """Make, mount, write, unmount, check, mount again, compare; and again in a second guest."""
    path = tmp_path / "fs.img"
    path.write_bytes(bytes(16 * MIB))
    with pykvm.boot(disks=[path], timeout=linux_patience()) as guest:
        guest.run("mke2fs -q -t ext4 -F /dev/vda && mount -t ext4 /dev/vda /mnt")
        guest.run("dd if=/dev/urandom of=/mnt/data bs=4k count=64 && md5sum /mnt/data > /mnt/sum")
        guest.run("umount /mnt && e2fsck -fn /dev/vda && mount -t ext4 /dev/vda /mnt")
        guest.run("md5sum -c /mnt/sum")
        # It is still mounted: powering off must unmount it.
        guest.power_off()
    disk = pykvm.DiskConfig(path, readonly=True)
    with pykvm.boot(disks=[disk], timeout=linux_patience()) as guest:
        assert "clean" in guest.run("e2fsck -n /dev/vda").text
        guest.run("mount -t ext4 -o ro /dev/vda /mnt && md5sum -c /mnt/sum")


FIO = (
    "fio --name=t --filename=/dev/vda --rw=randwrite --bs=4k --ioengine={} --iodepth=8 "
    "--direct=1 --number_ios={} --verify=crc32c --do_verify=1 --minimal"
)


def test_fio(tmp_path: Path) -> None:
    """fio verifies its data, and neither notification nor interrupt makes an exit."""
    path = image(tmp_path, 8 * MIB)
    with pykvm.boot(disks=[path], timeout=linux_patience()) as guest:
        operations, exits = [], []
        for engine, count in (("io_uring", 16), ("libaio", 80)):
            guest.run(FIO.format(engine, count))
            stats = guest.disks[0].stats
            operations.append(stats.wr_operations + stats.rd_operations)
            exits.append(guest.machine.statistics()["exits"]["MmioExit"])
    assert operations[1] - operations[0] >= 160
    assert exits[1] - exits[0] <= 8


def test_fio_on_a_disk_of_the_command_line(boot, tmp_path: Path) -> None:
    """Such a disk has no plan of failures: its requests go to its engine directly."""
    stats = tmp_path / "stats.json"
    disk = ["--disk", str(image(tmp_path, 8 * MIB)), "--stats", str(stats)]
    boot(*disk, "--exec", FIO.format("libaio", 80))
    (counts,) = json.loads(stats.read_text())["disks"]
    assert counts["wr_operations"] >= 80
    assert counts["rd_operations"] >= 80


def test_interrupts_without_msi(tmp_path: Path) -> None:
    """The disk works by INTx, through the I/O APIC as the MP table says."""
    path = image(tmp_path, MIB)
    with pykvm.boot(disks=[path], append="pci=nomsi", cold=True, timeout=linux_patience()) as guest:
        assert guest.run("md5sum < /dev/vda").text == md5(path.read_bytes())
        interrupts = guest.run("cat /proc/interrupts").text
    (line,) = [line for line in interrupts.splitlines() if "virtio" in line]
    assert "IO-APIC" in line
    assert "fasteoi" in line


def test_packed_rings(tmp_path: Path) -> None:
    """A filesystem on a packed queue, and on a small one without indirect descriptors."""
    first, second = tmp_path / "fs.img", image(tmp_path, MIB)
    first.write_bytes(bytes(2 * MIB))
    before = second.read_bytes()
    plain = pykvm.DiskConfig(
        second, packed=True, event_idx=False, indirect_desc=False, queue_size=16
    )
    disks = [pykvm.DiskConfig(first, packed=True), plain]
    trace = pykvm.TraceLog("*.negotiate")
    with pykvm.boot(disks=disks, trace=trace, timeout=linux_patience()) as guest:
        guest.run("mke2fs -q -t ext2 -F /dev/vda && mount -t ext2 /dev/vda /mnt")
        guest.run("head -c 300000 /dev/vdb > /mnt/data")
        guest.run("umount /mnt && e2fsck -fn /dev/vda && mount -t ext2 -o ro /dev/vda /mnt")
        assert guest.run("md5sum < /mnt/data").text == md5(before[:300000])
        assert guest.run("md5sum < /dev/vdb").text == md5(before)
        guest.run("dd if=/mnt/data of=/dev/vdb bs=100k count=2 seek=5 conv=fsync,notrunc")
    at, end = 500 << 10, 700 << 10
    assert second.read_bytes() == before[:at] + before[: end - at] + before[end:]
    ring = VIRTIO_F_RING_PACKED | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    accepted = [int(event["features"], 16) & ring for event in trace]
    assert accepted == [ring, VIRTIO_F_RING_PACKED]


def test_a_disk_that_linux_takes_off_the_bus_can_be_found_again(tmp_path: Path) -> None:
    """Linux without ACPI then chooses the BARs' places itself: right above RAM."""
    path = image(tmp_path, MIB)
    before = path.read_bytes()
    with pykvm.boot(disks=[path], timeout=linux_patience()) as guest:
        assert guest.run("md5sum < /dev/vda").text == md5(before)
        guest.run("echo 1 > /sys/bus/pci/devices/0000:00:02.0/remove; test ! -e /dev/vda")
        guest.run("echo 1 > /sys/bus/pci/rescan")
        assert guest.run("md5sum < /dev/vda").text == md5(before)
        guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=3 conv=fsync,notrunc")
    assert path.read_bytes() == before[: 3 * 4096] + bytes(4096) + before[4 * 4096 :]
