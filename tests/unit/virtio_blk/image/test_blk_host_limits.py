"""The host's limits for a transfer: its size and its alignment."""

import errno
import os
import struct
from contextlib import closing
from pathlib import Path

import pytest
from blk_host import filesystem, loop_device, overlay_of, require_direct
from blk_image import refusal

import pykvm.host.libc
from pykvm.devices.virtio_blk import CacheMode, Image
from pykvm.devices.virtio_blk.image import host_limits

DIRECT = [CacheMode.NONE, CacheMode.DIRECTSYNC]


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
    """The kernel's flags of an open file."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("flags")), 8)


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
def test_data_show_the_alignment_where_no_device_can(
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

    monkeypatch.setattr(pykvm.host.libc, "system_call", system_call)
