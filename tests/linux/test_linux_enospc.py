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
from itertools import groupby
from pathlib import Path

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


def stopped(guest: pykvm.Guest, index: int) -> None:
    """The guest stops because a disk has no space, and says so in the usual ways."""
    error = guest.wait_stopped()
    assert (error.operation, error.errno, error.full) == ("write", errno.ENOSPC, True)
    assert error.action is pykvm.ErrorAction.STOP
    assert guest.machine.status is pykvm.RunState.IO_ERROR
    for number, disk in enumerate(guest.disks):
        full = number == index
        assert disk.io_status is (pykvm.IoStatus.NOSPACE if full else pykvm.IoStatus.OK)


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
    events: list[pykvm.Event] = []
    with pykvm.boot(disks=disks, timeout=linux_patience()) as guest:
        guest.machine.listen(events.append)
        guest.run(f"seq 1 {LINES} > /tmp/data")
        guest.run("mke2fs -q -t ext4 -F /dev/vda && mount -t ext4 -o noinit_itable /dev/vda /mnt")
        guest.run("sync")
        fill_up(rest)
        with guest.popen("dd if=/tmp/data of=/mnt/data bs=64k conv=fsync") as writer:
            stopped(guest, 0)
            guest.resume()
            stopped(guest, 0)  # there is still no space
            ballast[0].unlink()
            guest.resume()
            writer.wait()
        guest.run("mount -o remount,ro /mnt")
        with guest.popen("dd if=/tmp/data of=/dev/vdb bs=64k conv=fsync") as writer:
            stopped(guest, 1)
            for file in (ballast[1], rest):
                file.unlink()
            guest.resume()
            writer.wait()
        guest.run("echo 3 > /proc/sys/vm/drop_caches")
        digest = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
        assert guest.run("md5sum < /mnt/data").text == f"{digest}  -"
        assert guest.run(f"head -c {len(DATA)} /dev/vdb | md5sum").text == f"{digest}  -"
        guest.run("umount /mnt && e2fsck -fn /dev/vda")
        guest.machine.flush_events()
        # Several requests may fail before the guest has stopped.
        kinds = [kind for kind, _ in groupby(map(type, events))]
        assert kinds == 3 * [pykvm.BlockIoError, pykvm.Stop, pykvm.Resume]
        failed = [event.device for event in events if isinstance(event, pykvm.BlockIoError)]
        assert [device for device, _ in groupby(failed)] == ["virtio0", "virtio1"]
    with raw.open("rb") as written:
        assert written.read(len(DATA)) == DATA
