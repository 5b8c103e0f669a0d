"""What can be a disk, and what the user is told about what cannot."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm.devices.virtio_blk import Image
from pykvm.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(bytes(4096))
    return file


def refusal(path: Path | str, readonly: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        Image(path, readonly)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_raw_file(path: Path) -> None:
    image = Image(path)
    assert (image.size, image.capacity, image.readonly, image.notice) == (4096, 8, False, "")
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
        assert "readonly=on" not in refusal(file.name, readonly=True)


def test_an_empty_file(path: Path) -> None:
    os.truncate(path, 0)
    assert "is empty" in refusal(path)


@pytest.mark.parametrize("size", [1, 511, 513, 4095])
def test_a_size_that_is_no_multiple_of_512(path: Path, size: int) -> None:
    os.truncate(path, size)
    message = refusal(path)
    assert f"{size} bytes" in message
    assert "truncate -s %512" in message
    assert path.stat().st_size == size


def test_nothing_stays_open_after_a_refusal(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.truncate(path, 100)
    refusal(path)
    refusal(path.parent)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_format_is_noticed_but_not_believed(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"QFI\xfb\0\0\0\3")
    image = Image(path)
    assert image.size == 4096
    assert "qcow2" in image.notice
    assert "raw" in image.notice
    image.close()


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[str]:
    """A loop device of 64 KiB."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(65536))
    losetup = shutil.which("losetup")
    if losetup is None or os.geteuid() != 0:
        pytest.skip("loop devices need root and losetup")
    command = [losetup, "--find", "--show", str(backing)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run([losetup, "--detach", made.stdout.strip()], check=True, timeout=20)


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
