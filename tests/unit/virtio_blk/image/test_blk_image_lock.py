"""Image locks: between devices, between processes, and with QEMU's own bytes."""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from patience import patience

from pykvm.devices.virtio_blk import Image, Locking
from pykvm.devices.virtio_blk.layers.overlay import OverlayImage
from pykvm.errors import UsageError

QEMU = shutil.which("qemu-system-x86_64")

HOLD = """
import fcntl, os, struct, sys
from pykvm.devices.virtio_blk import Image
if sys.argv[2] == "all":
    fd = os.open(sys.argv[1], os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
else:
    image = Image(sys.argv[1], readonly=sys.argv[2] == "ro")
if sys.argv[2] == "named":
    with open("/proc/self/comm", "wb") as comm:
        comm.write(b"\\xffx")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(bytes(65536))
    return file


@pytest.fixture
def images() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def held(images: ExitStack, path: Path, readonly: bool = False) -> Image:
    image = Image(path, readonly)
    images.callback(image.close)
    return image


def refusal(path: Path, readonly: bool, locking: Locking = Locking.AUTO) -> str:
    with pytest.raises(UsageError) as caught:
        Image(path, readonly, locking=locking).close()
    return str(caught.value)


@pytest.fixture
def other_process(path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Append a started process to it, so that the process ends."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def hold_elsewhere(processes: list[subprocess.Popen[str]], path: Path, mode: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process.pid


class TestOneProcess:
    def test_a_second_writer_is_refused(self, path: Path, images: ExitStack) -> None:
        held(images, path)
        assert "in use: this process writes to it" in refusal(path, readonly=False)

    def test_a_reader_beside_a_writer_is_refused(self, path: Path, images: ExitStack) -> None:
        held(images, path)
        assert "this process writes to it" in refusal(path, readonly=True)

    def test_a_writer_beside_a_reader_is_refused(self, path: Path, images: ExitStack) -> None:
        held(images, path, readonly=True)
        assert "this process reads it" in refusal(path, readonly=False)

    def test_readers_share_an_image(self, path: Path, images: ExitStack) -> None:
        for _ in range(3):
            held(images, path, readonly=True)

    def test_another_name_is_the_same_file(self, path: Path, images: ExitStack) -> None:
        link = path.with_name("link")
        os.link(path, link)
        held(images, path)
        assert "in use" in refusal(link, readonly=False)

    def test_closing_unlocks(self, path: Path) -> None:
        for readonly in (False, True, False):
            Image(path, readonly).close()

    def test_a_refused_image_leaves_no_lock(self, path: Path, images: ExitStack) -> None:
        first = held(images, path, readonly=True)
        refusal(path, readonly=False)
        held(images, path, readonly=True)
        first.close()


class TestNoLocks:
    @pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
    @pytest.mark.parametrize("command", [fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK])
    @pytest.mark.parametrize("readonly", [False, True])
    def test_a_filesystem_without_locks(
        self,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: int,
        command: int,
        readonly: bool,
    ) -> None:
        fail(monkeypatch, command, error)
        with closing(Image(path, readonly)) as image:
            (notice,) = image.notices
            assert f"{path} is not locked" in notice
        message = refusal(path, readonly, Locking.ON)
        assert "cannot be locked" in message
        assert "locking=off" in message
        with closing(Image(path, readonly, locking=Locking.OFF)) as image:
            assert image.notices == []

    def test_an_error_is_not_a_lack_of_locks(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail(monkeypatch, fcntl.F_OFD_SETLK, errno.EIO)
        for locking in (Locking.AUTO, Locking.ON):
            assert "input/output error" in refusal(path, False, locking)

    def test_the_temporary_file_of_a_snapshot_needs_none(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No other process can open it."""
        monkeypatch.setenv("TMPDIR", str(path.parent))
        with closing(Image(path, readonly=True)) as base:
            fail(monkeypatch, fcntl.F_OFD_SETLK, errno.ENOLCK)
            assert OverlayImage(base).notices == []

    def test_without_locking_every_user_is_admitted(self, path: Path, images: ExitStack) -> None:
        held(images, path)
        Image(path, locking=Locking.OFF).close()
        assert "this process writes to it" in refusal(path, False)

    def test_a_lock_of_another_program(
        self, path: Path, other_process: list[subprocess.Popen[str]]
    ) -> None:
        pid = hold_elsewhere(other_process, path, "all")
        message = refusal(path, readonly=True)
        assert f"in use: process {pid} (python" in message
        assert "has locked it" in message


def fail(monkeypatch: pytest.MonkeyPatch, wanted: int, error: int) -> None:
    """A kernel whose fcntl ``wanted`` fails with ``error``."""
    real = fcntl.fcntl

    def failing(fd: int, command: int, argument: bytes = b"") -> object:
        if command == wanted:
            raise OSError(error, os.strerror(error))
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", failing)


class TestTwoProcesses:
    @pytest.mark.parametrize("readonly", [False, True])
    def test_beside_a_writer(
        self, path: Path, other_process: list[subprocess.Popen[str]], readonly: bool
    ) -> None:
        pid = hold_elsewhere(other_process, path, "rw")
        assert f"process {pid} (python" in refusal(path, readonly)

    def test_beside_a_reader(
        self, path: Path, other_process: list[subprocess.Popen[str]], images: ExitStack
    ) -> None:
        pid = hold_elsewhere(other_process, path, "ro")
        assert f"process {pid} (python" in refusal(path, readonly=False)
        held(images, path, readonly=True)

    def test_a_holder_whose_name_is_not_utf_8(
        self, path: Path, other_process: list[subprocess.Popen[str]]
    ) -> None:
        pid = hold_elsewhere(other_process, path, "named")
        assert f"process {pid} (\N{REPLACEMENT CHARACTER}x) writes to it" in refusal(path, False)

    def test_the_lock_dies_with_its_process(
        self, path: Path, other_process: list[subprocess.Popen[str]], images: ExitStack
    ) -> None:
        hold_elsewhere(other_process, path, "rw")
        other_process[0].kill()
        other_process[0].wait()
        held(images, path)


def locked_bytes(path: Path) -> set[int]:
    """The locked bytes, as another process sees them."""
    found = set()
    flock = struct.Struct("@hhqqi4x")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for byte in range(300):
            ask = flock.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            if flock.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, ask))[0] != fcntl.F_UNLCK:
                found.add(byte)
    finally:
        os.close(fd)
    return found


def test_the_bytes_are_those_of_qemu(path: Path) -> None:
    """As seen in /proc/PID/fdinfo of QEMU 7.2 with a raw virtio disk."""
    for readonly, expected in ((False, {100, 101, 201}), (True, {100, 201})):
        image = Image(path, readonly)
        assert locked_bytes(path) == expected
        image.close()
    assert locked_bytes(path) == set()


def await_main_loop(qemu: subprocess.Popen[str]) -> None:
    """Return when ``qemu`` has its devices: only then it answers a command."""
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    qemu.stdin.write('{"execute": "qmp_capabilities"}\n')
    qemu.stdin.flush()
    for expected in ("QMP", "return"):
        assert expected in qemu.stdout.readline(), qemu.communicate()[1]


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")
class TestWithQemu:
    def start(self, path: Path, readonly: str) -> subprocess.Popen[str]:
        assert QEMU is not None
        drive = f"file={path},format=raw,if=virtio,readonly={readonly}"
        command = [QEMU, "-S", "-accel", "tcg", "-display", "none", "-nodefaults", "-m", "16"]
        return subprocess.Popen(
            [*command, "-drive", drive, "-qmp", "stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @pytest.mark.parametrize(
        ("qemu_readonly", "ours"), [("off", False), ("off", True), ("on", False)]
    )
    def test_an_image_in_use_by_qemu_is_refused(
        self, path: Path, qemu_readonly: str, ours: bool
    ) -> None:
        process = self.start(path, qemu_readonly)
        try:
            # Not as soon as the locks are there: QEMU checks for other locks after it has taken
            # its own, and would give way to ours.
            await_main_loop(process)
            assert locked_bytes(path) == {100, 201} | ({101} if qemu_readonly == "off" else set())
            assert f"process {process.pid} (qemu" in refusal(path, ours)
        finally:
            process.kill()
            process.communicate()

    @pytest.mark.parametrize(
        ("ours", "qemu_readonly"), [(False, "off"), (False, "on"), (True, "off")]
    )
    def test_qemu_refuses_an_image_in_use_by_pykvm(
        self, path: Path, images: ExitStack, ours: bool, qemu_readonly: str
    ) -> None:
        held(images, path, readonly=ours)
        process = self.start(path, qemu_readonly)
        try:
            _, message = process.communicate(timeout=patience())
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 1
        assert "Failed to get" in message
        assert "lock" in message
