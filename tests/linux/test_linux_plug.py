"""Disks that come and go while Linux runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import pykvm
from pykvm import Guest, Snapshot
from pykvm.errors import UsageError
from pykvm.machine.disks import Disk

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

RESCAN = "echo 1 > /sys/bus/pci/rescan"


@pytest.fixture
def guest() -> Iterator[Guest]:
    with pykvm.boot(disks=()) as made:
        yield made


def let_go(guest: Guest, disk: Disk) -> None:
    guest.run(f"echo 1 > /sys/bus/pci/devices/0000:00:{disk.number:02x}.0/remove")


def test_disks_come_and_go(guest: Guest, tmp_path: Path) -> None:
    machine, image = guest.machine, tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    blank = machine.add_disk("16M")
    other = machine.add_disk(image)
    assert [disk.name for disk in machine.disks] == ["virtio0", "virtio1"]
    guest.run(RESCAN)
    assert guest.run("cat /sys/block/vda/size /sys/block/vdb/size").text == "32768\n2048"
    guest.run("echo first > /dev/vda; echo second > /dev/vdb; sync")
    let_go(guest, blank)
    machine.remove_disk(blank)
    assert guest.run("ls /sys/block | grep vd").text == "vdb"
    assert guest.run("head -n 1 /dev/vdb").text == "second"
    again = machine.add_disk("8M")
    assert (again.name, again.number) == (blank.name, blank.number)
    guest.run(RESCAN)
    assert guest.run("cat /sys/block/vda/size").text == "16384"
    assert guest.run("head -c 512 /dev/vda | tr -d '\\000' | wc -c").text == "0"
    let_go(guest, other)
    machine.remove_disk(other)
    assert image.read_bytes().startswith(b"second\n")
    with pytest.raises(UsageError, match="does not have this disk"):
        machine.remove_disk(other)


def test_a_disk_that_is_torn_out_leaves_a_guest_that_answers(guest: Guest, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"kept".ljust(1 << 20, b"\0"))
    disk = guest.machine.add_disk(image)
    guest.run(RESCAN)
    assert guest.run("head -c 4 /dev/vda").text == "kept"
    guest.machine.remove_disk(disk)
    path = f"/sys/bus/pci/devices/0000:00:{disk.number:02x}.0/config"
    assert guest.run(f"head -c 4 {path} | od -x").text.split()[1:3] == ["ffff"] * 2
    assert guest.run("echo still here").text == "still here"
    assert image.read_bytes().startswith(b"kept")


def test_a_folder_brings_its_blank_disks_and_asks_for_its_images(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    with pykvm.boot(disks=["16M"]) as guest:
        guest.run("echo kept > /dev/vda && sync")
        with guest.snapshot() as taken:
            taken.save(tmp_path / "blank")
        guest.add_disk(pykvm.DiskConfig(image, snapshot=True))
        with guest.snapshot() as taken:
            taken.save(tmp_path / "image")
    with Snapshot.open(tmp_path / "blank", "guest") as saved, saved.restore() as again:
        assert again.run("head -n 1 /dev/vda").text == "kept"
        assert [disk.config.blank for disk in again.disks] == [16 << 20]
    with pytest.raises(UsageError, match="has disks with images") as error:
        Snapshot.open(tmp_path / "image", "guest")
    assert f"--disk blank={16 << 20} --disk {image},snapshot=on" in str(error.value)
