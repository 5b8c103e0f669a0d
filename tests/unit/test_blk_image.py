"""What can be a disk, and what the user is told about what cannot."""

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
from blk_host import filesystem, loop_device, overlay_of, require_direct
from hypothesis import given
from hypothesis import strategies as st
from patience import patience

import pykvm.libc
from pykvm.devices.virtio_blk import CacheMode, Image, ImageFormat, host_limits
from pykvm.devices.virtio_blk.formats import format_of
from pykvm.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(bytes(4096))
    return file


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[str]:
    """A loop device of 64 KiB."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(65536))
    with loop_device(backing) as device:
        yield device


DIRECT = [CacheMode.NONE, CacheMode.DIRECTSYNC]


def refusal(
    path: Path | str, readonly: bool = False, cache: CacheMode = CacheMode.WRITEBACK
) -> str:
    with pytest.raises(UsageError) as caught:
        Image(path, readonly, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    """Else io_uring can fail with EAGAIN what would block."""
    image = Image(path)
    assert os.get_blocking(image.fd)
    image.close()


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none")
    assert "truncate -s" in refusal(tmp_path / "none")


def test_names_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refusal("")
    assert "not a file name" in refusal("a\0b")
    assert "too long" in refusal(str(tmp_path / ("x" * 300)))


def test_what_is_not_a_disk(tmp_path: Path) -> None:
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
            assert "somebody who may read it" in refusal(file.name, readonly)


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
        (errno.EBUSY, "mounted or claimed", "busy"),
        (errno.ENXIO, "there is no device, or nothing in it", "nothing in it"),
        (errno.ENOMEDIUM, "put a medium into it", "put a medium into it"),
        (errno.ENOENT, "create it first", "check its path"),
        (errno.EIO, "input/output error", "input/output error"),
    ],
)
def test_what_keeps_a_file_from_opening(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int, writing: str, reading: str
) -> None:
    def fail(*args: object) -> int:
        raise OSError(error, "injected")

    monkeypatch.setattr(os, "open", fail)
    assert writing in refusal(path)
    message = refusal(path, readonly=True)
    assert reading in message
    assert "readonly=on" not in message


def test_a_file_that_fails_when_it_is_looked_at(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert f"the block device {device} has no bytes" in refusal(device, readonly=True)
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
        assert f"{-size % 512} more, zeros" in image.notices[0]
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


FORMATS = {
    b"QFI\xfb\0\0\0\1": "qcow",
    b"QFI\xfb\0\0\0\2": "qcow2",
    b"QFI\xfb\0\0\0\3": "qcow2",
    b"QED\0": "QED",
    b"KDMV": "VMDK",
    b"COWD": "VMDK",
    b"# Disk DescriptorFile\nversion=1\n": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe": "VDI",
    b"WithoutFreeSpace": "Parallels",
    b"WithouFreSpacExt": "Parallels",
    b"Bochs Virtual HD Image": "Bochs",
    b"LUKS\xba\xbe\0\1": "LUKS",
}


@pytest.mark.parametrize("size", [100, 4096, 4096 + 100])
@pytest.mark.parametrize("magic", FORMATS, ids=FORMATS.values())
def test_a_format_is_refused_unless_its_user_insists(path: Path, magic: bytes, size: int) -> None:
    """Whatever its size, and opened for reading too."""
    path.write_bytes(magic.ljust(size, b"\0"))
    for readonly in (False, True):
        message = refusal(path, readonly)
        assert f"like a {FORMATS[magic]} image" in message
        assert "format=raw" in message
        if FORMATS[magic] != "LUKS":
            assert f"qemu-img convert -O raw {path} " in message
    if size == 4096:
        with closing(Image(path, format=ImageFormat.RAW)) as image:
            assert (image.size, image.notices) == (4096, [])
    assert path.read_bytes() == magic.ljust(size, b"\0")


@given(st.binary(max_size=200))
def test_other_bytes_are_raw(head: bytes) -> None:
    assert format_of(b"\xeb\x63" + head) == ("VDI" if head[62:66] == b"\x7f\x10\xda\xbe" else "")


def test_a_part_of_the_magic_bytes_is_not_enough() -> None:
    heads = (b"", b"QFI", b"LUKS\xba", b"vhdxfil", b"WithoutFreeSpac", bytes(64) + b"\x7f\x10\xda")
    assert [format_of(head) for head in heads] == [""] * len(heads)


def test_a_format_on_a_block_device(block_device: str) -> None:
    with open(block_device, "r+b", buffering=0) as file:
        file.write(b"QFI\xfb\0\0\0\3".ljust(4096, b"\0"))
    for cache in (CacheMode.WRITEBACK, CacheMode.NONE):
        assert "like a qcow2 image" in refusal(block_device, cache=cache)
        Image(block_device, cache=cache, format=ImageFormat.RAW).close()


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
        assert "claimed" in refusal(block_device)
        Image(block_device, readonly=True).close()
    finally:
        os.close(claim)


def test_a_block_device_that_the_host_does_not_let_be_written(tmp_path: Path) -> None:
    """It opens for writing, and what is written stays in the page cache until it is forgotten."""
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


# -- what the host asks of a transfer ----------------------------------------


def test_a_file_takes_what_a_system_call_moves(path: Path) -> None:
    image = Image(path)
    assert (image.max_transfer, image.alignment) == (0x7FFFF000, 1)
    image.close()


@pytest.mark.parametrize("block", [512, 4096])
def test_a_block_device_takes_what_its_queue_takes(tmp_path: Path, block: int) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(65536))
    with loop_device(backing, block) as device:
        limit = Path("/sys/block", Path(device).name, "queue/max_sectors_kb")
        most = int(limit.read_text()) << 10
        for cache in (CacheMode.WRITEBACK, CacheMode.NONE):
            image = Image(device, cache=cache)
            assert image.max_transfer == most // block * block
            assert image.alignment == (block if cache.direct else 1)
            image.close()


def test_a_limit_is_whole_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the answer, of 16 bits, is as large as it can be; and never nothing."""
    answers = {0x1267: b"\xff\xff", 0x1268: (4096).to_bytes(4, "little")}
    monkeypatch.setattr(host_limits.fcntl, "ioctl", lambda fd, request, _: answers[request])
    monkeypatch.setattr(host_limits.stat, "S_ISBLK", lambda mode: True)
    with path.open("rb") as file:
        assert host_limits.max_transfer(file.fileno()) == 65528 * 512
        answers[0x1267] = b"\1\0"
        assert host_limits.max_transfer(file.fileno()) == 4096


@pytest.mark.parametrize("cache", list(CacheMode))
@pytest.mark.parametrize("readonly", [False, True])
def test_direct_where_the_mode_says_so(path: Path, cache: CacheMode, readonly: bool) -> None:
    if cache.direct:
        require_direct(path.parent)
    image = Image(path, readonly, cache)
    assert bool(flags(image.fd) & os.O_DIRECT) == cache.direct == (image.alignment > 1)
    image.close()


def flags(fd: int) -> int:
    """What the kernel says about an open file."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("flags")), 8)


@pytest.mark.parametrize("cache", DIRECT)
def test_a_format_shows_in_blocks_too(path: Path, cache: CacheMode) -> None:
    require_direct(path.parent)
    path.write_bytes(b"QFI\xfb\0\0\0\3".ljust(4096))
    assert "like a qcow2 image" in refusal(path, cache=cache)


@pytest.mark.parametrize("cache", DIRECT)
def test_a_filesystem_without_o_direct(cache: CacheMode) -> None:
    """sysfs is one everywhere."""
    message = refusal("/sys/kernel/uevent_seqnum", True, cache)
    assert "does not support O_DIRECT" in message
    assert f"cache={'writeback' if cache is CacheMode.NONE else 'writethrough'}" in message


def accept_multiples_of(
    monkeypatch: pytest.MonkeyPatch, block: int, error: int = errno.EINVAL
) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if len(buffers[0]) % block:
            raise OSError(error, "injected")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)


@pytest.mark.parametrize("block", [512, 1024, 4096])
def test_a_file_is_asked_for_its_alignment(
    path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    require_direct(path.parent)
    monkeypatch.setattr(host_limits, "_queue_limit", lambda device, name: 0)
    monkeypatch.setattr(host_limits, "_told_alignment", lambda fd: None)
    accept_multiples_of(monkeypatch, block)
    image = Image(path, cache=CacheMode.NONE)
    assert image.alignment == block
    image.close()


def test_no_alignment_suits_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_direct(path.parent)
    monkeypatch.setattr(host_limits, "_told_alignment", lambda fd: None)
    accept_multiples_of(monkeypatch, 1 << 30)
    assert "does not support O_DIRECT" in refusal(path, cache=CacheMode.NONE)


def test_a_bad_first_sector_is_the_guests_to_find(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_direct(path.parent)
    accept_multiples_of(monkeypatch, 1 << 30, errno.EIO)
    image = Image(path, cache=CacheMode.NONE)
    assert image.alignment >= 512
    image.close()


@pytest.mark.parametrize("told", [False, True])
def test_a_hole_does_not_hide_the_devices_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """A file of holes, as new images are, on a filesystem whose device has blocks of 4096."""
    if not told:
        monkeypatch.setattr(host_limits, "_told_alignment", lambda fd: None)
    with filesystem(tmp_path, block=4096) as folder:
        path = folder / "disk"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        with closing(Image(path, cache=CacheMode.NONE)) as image:
            assert image.alignment == 4096
        os.truncate(path, (1 << 20) + 512)
        message = refusal(path, cache=CacheMode.NONE)
        assert "blocks of 4096 bytes" in message
        assert "truncate -s %4096" in message
        assert "cache=writeback" in message


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("hole", [0, 1 << 16])
def test_data_are_asked_where_no_device_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool, hole: int
) -> None:
    """An overlay has no device: the block size shows where there are data, not in a hole."""
    if not told:
        monkeypatch.setattr(host_limits, "_told_alignment", lambda fd: None)
    with filesystem(tmp_path, block=4096) as below, overlay_of(tmp_path, below) as folder:
        path = folder / "disk"
        with path.open("wb") as file:
            file.truncate(1 << 20)
            file.seek(hole)
            file.write(b"x" * 16384)
            os.fsync(file.fileno())
        with closing(Image(path, cache=CacheMode.NONE)) as image:
            assert image.alignment == 4096


def test_what_the_kernel_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """statx(2), STATX_DIOALIGN: the larger alignment of memory and offsets, where there is one."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 16))
    require_direct(tmp_path)
    answers = {
        (0x2000, 4, 512, 0): (512, False),
        (0x2000, 8192, 512, 0): (8192, True),
        (0x2000, 4, 16384, 0): (16384, True),
        (0x2000, 4, 1, 0): (512, False),
        (0x22000, 4, 512, 512): (512, False),
        (0x22000, 4, 4096, 512): (512, True),  # XFS, blocks shared with another file
        (0x22000, 4, 4096, 0): (4096, True),
        (0x2000, 4, 4096, 512): (4096, True),  # and not stated
    }
    for stated, expected in answers.items():
        state(monkeypatch, *stated)
        with closing(Image(path, cache=CacheMode.NONE)) as image:
            assert (image.alignment, image.edges) == expected
    for stated in ((0, 4, 16384, 0), (0x2000, 0, 0, 0)):
        state(monkeypatch, *stated)
        with closing(Image(path, cache=CacheMode.NONE)) as image:
            assert image.alignment <= 4096


def state(
    monkeypatch: pytest.MonkeyPatch, mask: int, memory: int, offset: int, reading: int
) -> None:
    """A kernel whose statx says this."""

    def system_call(number: int, *arguments: object) -> int:
        assert number == 332
        answer = arguments[-1]
        assert isinstance(answer, bytearray)
        struct.pack_into("I", answer, 0, mask)
        struct.pack_into("II", answer, 0x98, memory, offset)
        struct.pack_into("I", answer, 0xB4, reading)
        return 0

    monkeypatch.setattr(pykvm.libc, "system_call", system_call)
