"""Files that can be disks, and the errors for those that cannot."""

import errno
import fcntl
import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blk_host import filesystem, loop_device, require_direct
from blk_image import refusal
from patience import patience

from pykvm.devices.virtio_blk import CacheMode, Image
from pykvm.devices.virtio_blk.layers.faults import FaultPlan
from pykvm.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(bytes(4096))
    return file


def test_a_raw_file(path: Path) -> None:
    image = Image(path)
    assert (image.size, image.capacity, image.readonly, image.notices) == (4096, 8, False, [])
    assert os.pwrite(image.fd, b"x", 0) == 1
    assert image.sync() == 0
    image.close()
    image.close()


def test_a_read_only_image_cannot_be_written(path: Path) -> None:
    image = Image(path, readonly=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(image.fd, b"x", 0)
    assert image.sync() == 0
    image.close()


def test_the_descriptor_is_not_inherited(path: Path) -> None:
    image = Image(path)
    assert not os.get_inheritable(image.fd)
    image.close()


def test_the_descriptor_blocks(path: Path) -> None:
    """Otherwise io_uring fails with EAGAIN instead of waiting."""
    image = Image(path)
    assert os.get_blocking(image.fd)
    image.close()


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none")
    assert "truncate -s" in refusal(tmp_path / "none")


def test_invalid_names(tmp_path: Path) -> None:
    assert "no such file" in refusal("")
    assert "not a file name" in refusal("a\0b")
    assert "too long" in refusal(str(tmp_path / ("x" * 300)))


def test_files_that_cannot_be_disks(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is a FIFO" in refusal(fifo)
    assert "is a FIFO" in refusal(fifo, readonly=True)
    assert "is a character device" in refusal("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        assert "is a socket" in refusal(tmp_path / "sock")


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root: root may open everything."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    yield
    if privileged:
        os.seteuid(0)


def test_no_permission(nobody: None) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
        os.chmod(file.name, 0o444)
        assert "permission denied" in refusal(file.name)
        assert "readonly=on" in refusal(file.name)
        Image(file.name, readonly=True).close()
        os.chmod(file.name, 0)
        for readonly in (False, True):  # for reading it is no better
            assert "readonly=on" not in refusal(file.name, readonly)
            assert "a user who may read it" in refusal(file.name, readonly)


def test_links(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert "a symbolic link to nowhere, which does not exist" in refusal(link)
    link.unlink()
    link.symlink_to("link")
    assert "leads back to itself" in refusal(link)


@pytest.mark.parametrize(
    ("error", "writing", "reading"),
    [
        (errno.EROFS, "read-only file system; give it readonly=on", "read-only file system"),
        (errno.EPERM, "immutable or append-only (lsattr), so give it readonly=on", "not permitted"),
        (errno.ETXTBSY, "a program that is running, so give it readonly=on", "text file busy"),
        (errno.EBUSY, "mounted or in use", "busy"),
        (errno.ENXIO, "the device does not exist, or has no medium", "no medium"),
        (errno.ENOMEDIUM, "insert a medium", "insert a medium"),
        (errno.ENOENT, "create it first", "check its path"),
        (errno.EIO, "input/output error", "input/output error"),
    ],
)
def test_errors_of_opening_a_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int, writing: str, reading: str
) -> None:
    def fail(*args: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", fail)
    assert writing in refusal(path)
    message = refusal(path, readonly=True)
    assert reading in message
    assert "readonly=on" not in message


def test_a_file_that_fails_after_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is gone, for one."""
    held = os.listdir("/proc/self/fd")

    def fail(fd: int, offset: int, whence: int) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "lseek", fail)
    assert refusal(path) == f"the disk image {path} cannot be used: stale file handle"
    assert os.listdir("/proc/self/fd") == held


def test_a_filesystem_that_is_read_only(tmp_path: Path) -> None:
    with filesystem(tmp_path, block=512) as folder:
        path = folder / "disk"
        path.write_bytes(bytes(4096))
        remount = ["mount", "-o", "remount,ro", folder]
        subprocess.run(remount, check=True, capture_output=True, timeout=patience())
        assert "give it readonly=on or snapshot=on" in refusal(path)
        Image(path, readonly=True).close()


def test_a_block_device_without_bytes(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(4096))
    with loop_device(backing) as device:
        os.truncate(backing, 0)
        with open(device, "rb") as file:
            fcntl.ioctl(file, 0x4C07)  # LOOP_SET_CAPACITY
        assert f"the block device {device} is empty" in refusal(device, readonly=True)
        assert "truncate" not in refusal(device)


def test_an_empty_file(path: Path) -> None:
    os.truncate(path, 0)
    assert "is empty" in refusal(path)


@pytest.mark.parametrize("size", [1, 511, 513, 4095])
def test_a_size_that_is_no_multiple_of_512(path: Path, size: int) -> None:
    os.truncate(path, size)
    message = refusal(path)
    assert f"{size} bytes" in message
    assert "truncate -s %512" in message
    assert "readonly=on" in message
    with closing(Image(path, readonly=True)) as image:
        assert (image.size, image.padding) == (-(-size // 512) * 512, -size % 512)
        assert f"{size} bytes" in image.notices[0]
        assert f"{-size % 512} more, which are zeros" in image.notices[0]
    assert path.stat().st_size == size


def test_an_image_to_be_read_need_not_be_whole_blocks(path: Path) -> None:
    """O_DIRECT reads up to the end of a file, wherever in a block that is."""
    require_direct(path.parent)
    os.truncate(path, 5000)
    with closing(Image(path, readonly=True, cache=CacheMode.NONE)) as image:
        assert (image.size, image.padding) == (5120, 120)


def test_nothing_stays_open_after_a_refusal(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.truncate(path, 100)
    refusal(path)
    refusal(path.parent)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
def test_a_name_that_is_not_utf_8(tmp_path: Path, cache: CacheMode) -> None:
    if cache.direct:
        require_direct(tmp_path)
    path = tmp_path / os.fsdecode(b"\xff.img")
    assert "cannot be opened" in refusal(path, cache=cache)
    path.write_bytes(bytes(4096))
    with closing(Image(path, cache=cache)):
        assert "in use" in refusal(path)
    path.write_bytes(b"QED\0".ljust(4096))
    assert f"qemu-img convert -O raw '{path}'" in refusal(path, cache=cache)
    faults = tmp_path / os.fsdecode(b"\xff.toml")
    with pytest.raises(UsageError, match="cannot be read: no such file"):
        FaultPlan.load(faults)
    faults.write_text("[[fault]]\nerrno = 'EIO'")
    assert len(FaultPlan.load(faults).rules) == 1


def test_a_block_device(block_device: str) -> None:
    image = Image(block_device)
    assert image.size == 65536
    assert os.pwrite(image.fd, b"x" * 512, 512) == 512
    assert image.sync() == 0
    assert "in use" in refusal(block_device, readonly=True)
    image.close()
    for readonly in (True, False):
        Image(block_device, readonly).close()


def test_a_block_device_that_is_claimed(block_device: str) -> None:
    """A mount claims its device just like this."""
    claim = os.open(block_device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        assert "in use" in refusal(block_device)
        Image(block_device, readonly=True).close()
    finally:
        os.close(claim)


def test_a_block_device_that_is_read_only_on_the_host(tmp_path: Path) -> None:
    """It opens for writing, and written data stay in the page cache and get lost."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(65536))
    with loop_device(backing, readonly=True) as device:
        for cache in (CacheMode.WRITEBACK, CacheMode.NONE):
            message = refusal(device, cache=cache)
            assert "is read-only on this host" in message
            assert "readonly=on" in message
        Image(device, readonly=True).close()


def test_a_block_device_that_becomes_read_only_fails_writes(block_device: str) -> None:
    """Nothing is lost silently: the host refuses the write itself."""
    protect = 0x125D  # BLKROSET
    with closing(Image(block_device)) as image:
        fcntl.ioctl(image.fd, protect, struct.pack("i", 1))
        try:
            with pytest.raises(PermissionError):
                os.pwrite(image.fd, b"x" * 512, 0)
        finally:
            fcntl.ioctl(image.fd, protect, struct.pack("i", 0))
