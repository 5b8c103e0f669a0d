"""A host filesystem that is really full, under a Linux guest that writes and syncs.

The images are sparse, on a tmpfs of their own with two files of ballast. Each
is as large as what the guest writes to one disk, and not as what it writes to
both. Then the rest is filled up: the guest's writes stop it, until ballast goes
and somebody lets it go on. No write may be lost on the way.
"""

import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import pytest
from patience import linux_patience

import pykvm

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.linux,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root"),
]

MIB = 1 << 20
LINES = 100_000
DATA = "".join(f"{number}\n" for number in range(1, LINES + 1)).encode()
MOUNT = 'mount -t tmpfs -o size=16m none "$0" && echo mounted && exec cat'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 16 MiB, mounted for nobody but a process that waits for the test's end."""
    place = tmp_path / "full"
    place.mkdir()
    command = ["unshare", "--mount", "sh", "-c", MOUNT, str(place)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        if process.stdout.readline() != b"mounted\n":
            pytest.skip(f"no private mount here: {process.stderr.read().decode().strip()}")
        yield Path(f"/proc/{process.pid}/root{place}")
        process.stdin.close()


def fill_up(path: Path) -> None:
    """Take all the space that ``path``'s filesystem has left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def stopped(guest: pykvm.Guest, events: "SimpleQueue[pykvm.Event]", index: int) -> None:
    """The guest stops because a disk has no space, and says so in the usual ways."""
    disk = guest.disks[index]
    while isinstance(event := events.get(timeout=linux_patience()), pykvm.BlockIoError):
        assert event.device == disk.name
        assert (event.error.operation, event.error.errno) == ("write", errno.ENOSPC)
        assert event.error.action is pykvm.ErrorAction.STOP
        assert event.error.full
    assert isinstance(event, pykvm.Stop)
    assert guest.machine.status is pykvm.RunState.IO_ERROR
    for one in guest.disks:
        assert one.io_status is (pykvm.IoStatus.NOSPACE if one is disk else pykvm.IoStatus.OK)


def go_on(guest: pykvm.Guest, events: "SimpleQueue[pykvm.Event]") -> None:
    guest.resume()
    assert isinstance(events.get(timeout=linux_patience()), pykvm.Resume)


def test_a_full_filesystem(folder: Path) -> None:
    """On the first disk with the default policy, on the second with werror=stop."""
    fs, raw, rest = folder / "fs.img", folder / "raw.img", folder / "rest"
    ballast = [folder / "first", folder / "second"]
    for image, size in ((fs, 16 * MIB), (raw, 4 * MIB)):
        image.touch()
        os.truncate(image, size)
    for file in ballast:
        file.write_bytes(bytes(MIB))
    disks = [fs, pykvm.DiskConfig(raw, werror="stop")]
    events: SimpleQueue[pykvm.Event] = SimpleQueue()
    with pykvm.boot(disks=disks, timeout=linux_patience()) as guest:
        guest.machine.listen(events.put)
        guest.run(f"seq 1 {LINES} > /tmp/data")
        guest.run("mke2fs -q -t ext4 -F /dev/vda && mount -t ext4 -o noinit_itable /dev/vda /mnt")
        guest.run("sync")
        fill_up(rest)
        with guest.popen("dd if=/tmp/data of=/mnt/data bs=64k conv=fsync") as writer:
            stopped(guest, events, 0)
            go_on(guest, events)
            stopped(guest, events, 0)  # there is still no space
            ballast[0].unlink()
            go_on(guest, events)
            writer.wait()
        guest.run("mount -o remount,ro /mnt")
        with guest.popen("dd if=/tmp/data of=/dev/vdb bs=64k conv=fsync") as writer:
            stopped(guest, events, 1)
            for file in (ballast[1], rest):
                file.unlink()
            go_on(guest, events)
            writer.wait()
        guest.run("echo 3 > /proc/sys/vm/drop_caches")
        digest = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
        assert guest.run("md5sum < /mnt/data").text == f"{digest}  -"
        assert guest.run(f"head -c {len(DATA)} /dev/vdb | md5sum").text == f"{digest}  -"
        guest.run("umount /mnt && e2fsck -fn /dev/vda")
        guest.machine.flush_events()
        assert events.empty()
    with raw.open("rb") as written:
        assert written.read(len(DATA)) == DATA
