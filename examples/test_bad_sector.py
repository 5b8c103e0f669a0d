"""One sector of a disk goes bad: the data of a file, which ext4 reports and survives."""

import pykvm


def test_ext4_reports_a_bad_sector_of_a_file(
    pykvm_guest: pykvm.Guest, pykvm_disk: pykvm.Disk
) -> None:
    marker = b"in the middle of the file"
    pykvm_guest.push(bytes(4096) + marker.ljust(4096) + bytes(4096), "/mnt/file")
    pykvm_guest.run("sync; echo 3 > /proc/sys/vm/drop_caches")
    sector = pykvm_disk.read(0, 2 << 20).index(marker) // 512
    pykvm_disk.faults.add(pykvm.Fault(operation="read", sectors=sector, errno="EIO"))

    whole = pykvm_guest.run("cat /mnt/file", check=False)
    assert b"I/O error" in whole.stderr
    assert f"I/O error, dev vda, sector {sector}" in pykvm_guest.console.text
    first = pykvm_guest.run("dd if=/mnt/file bs=1k count=1 2>/dev/null")
    assert first.stdout == bytes(1024)

    pykvm_guest.run("echo new > /mnt/other && sync")  # the filesystem goes on
    assert pykvm_guest.run("cat /mnt/other").text == "new"


def test_a_sector_that_fails_once_is_read_again(
    pykvm_guest: pykvm.Guest, pykvm_disk: pykvm.Disk
) -> None:
    pykvm_guest.push(b"content", "/mnt/file")
    pykvm_guest.run("sync; echo 3 > /proc/sys/vm/drop_caches")
    rule = pykvm_disk.faults.add(pykvm.Fault(operation="read", count=1, errno="EIO"))
    pykvm_guest.run("cat /mnt/file", check=False)
    assert rule.strikes == 1
    assert pykvm_guest.run("cat /mnt/file").text == "content"
