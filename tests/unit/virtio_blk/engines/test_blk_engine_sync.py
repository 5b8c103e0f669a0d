"""The sync engine: results of system calls become results of operations."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from blk_operations import operation
from checkout import HELPERS
from patience import patience

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.memory.ram import Ram

SIZE = 1 << 20


def run(image: Image, ram: Ram, *operations: Operation) -> list[int]:
    engine = SyncEngine(image, ram)
    engine.submit(operations)
    assert list(engine.completions()) == list(operations)
    assert engine.completions() == []
    engine.close()
    assert all(op.finished_ns for op in operations)
    return [op.error for op in operations]


def test_a_read_fills_its_segments_in_order(image: Image, path: Path) -> None:
    ram = Ram.flat(8192)
    read = operation(VIRTIO_BLK_T_IN, 1024, [(4096, 512), (0, 1), (100, 511)])
    assert run(image, ram, read) == [0]
    got = bytes(ram.bytes[4096:4608]) + bytes(ram.bytes[0:1]) + bytes(ram.bytes[100:611])
    assert got == path.read_bytes()[1024:2048]


def test_a_write_takes_its_segments_in_order(image: Image, path: Path) -> None:
    ram = Ram.flat(8192)
    ram.bytes[0:1024] = os.urandom(1024)
    before = path.read_bytes()
    write = operation(VIRTIO_BLK_T_OUT, 512, [(512, 512), (0, 512)])
    assert run(image, ram, write) == [0]
    data = bytes(ram.bytes[512:1024]) + bytes(ram.bytes[0:512])
    assert path.read_bytes() == before[:512] + data + before[1536:]


def test_operations_run_in_their_order(image: Image) -> None:
    ram = Ram.flat(8192)
    ram.bytes[0:512] = b"x" * 512
    write = operation(VIRTIO_BLK_T_OUT, 0, [(0, 512)])
    read = operation(VIRTIO_BLK_T_IN, 0, [(4096, 512)])
    assert run(image, ram, write, read) == [0, 0]
    assert bytes(ram.bytes[4096:4608]) == b"x" * 512


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT])
def test_a_short_transfer_reports_the_bytes_moved(
    image: Image, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    for name in ("preadv", "pwritev"):
        monkeypatch.setattr(os, name, lambda fd, views, offset: 100)
    moved = operation(kind, 512, [(0, 512), (1024, 1024)])
    assert run(image, Ram.flat(8192), moved) == [0]
    assert moved.moved == 100


@pytest.mark.parametrize("segments", [[(0, 1024)], [(0, 512), (512, 512)]])
def test_an_image_truncated_under_the_device(
    image: Image, path: Path, segments: list[tuple[int, int]]
) -> None:
    os.truncate(path, 512)
    ram = Ram.flat(8192)
    past = operation(VIRTIO_BLK_T_IN, 4096, segments)
    across = operation(VIRTIO_BLK_T_IN, 0, segments)
    inside = operation(VIRTIO_BLK_T_IN, 0, [(0, 512)])
    assert run(image, ram, past, across, inside) == [0, 0, 0]
    assert [op.moved for op in (past, across, inside)] == [0, 512, 512]


def test_a_stopped_engine_starts_nothing(image: Image, path: Path) -> None:
    ram = Ram.flat(4096)
    engine = SyncEngine(image, ram)
    engine.stop()
    operations = [operation(VIRTIO_BLK_T_OUT, 0, [(0, 512)]), operation(VIRTIO_BLK_T_FLUSH)]
    before = path.read_bytes()
    engine.submit(operations)
    assert [op.error for op in engine.completions()] == [errno.ECANCELED] * 2
    assert path.read_bytes() == before
    engine.close()


@pytest.mark.interpreted
def test_errors_are_per_operation(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def failing(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset == 512:
            raise OSError(errno.EREMOTEIO, "injected")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    ram = Ram.flat(8192)
    reads = [operation(VIRTIO_BLK_T_IN, 512 * i, [(0, 512)]) for i in range(3)]
    assert run(image, ram, *reads) == [0, errno.EREMOTEIO, 0]


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """A sparse image on a limit: the host says no, the operation says why."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(SIZE)
    image = Image(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ram = Ram.flat(8192)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        errors = run(
            image,
            ram,
            across := operation(VIRTIO_BLK_T_OUT, 3584, [(0, 1024)]),
            operation(VIRTIO_BLK_T_OUT, 8192, [(0, 512)]),
            operation(VIRTIO_BLK_T_OUT, 0, [(0, 512)]),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        image.close()
    assert errors == [0, errno.EFBIG, 0]
    assert across.moved == 512


FULL = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_blk_engine_sync import fill
fill(Path(sys.argv[1]))
"""


def fill(directory: Path) -> None:
    """Write a sparse image of 1 MiB on a filesystem of 128 KiB until it is full."""
    path = directory / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
    image = Image(path)
    ram = Ram.flat(1 << 16)
    writes = [operation(VIRTIO_BLK_T_OUT, i << 16, [(0, 1 << 16)]) for i in range(4)]
    errors = run(image, ram, *writes)
    image.close()
    assert errors[0] == 0
    assert errors[3] == errno.ENOSPC


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_filesystem(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=128k none "$0" && exec "$@"'
    folders = [str(Path(__file__).parent), str(HELPERS)]
    command = [sys.executable, "-c", FULL, str(tmp_path), *folders]
    unshare = ["unshare", "--mount", "sh", "-c", script, str(tmp_path)]
    probe = subprocess.run([*unshare, "true"], capture_output=True, check=False, timeout=patience())
    if probe.returncode:
        pytest.skip(f"no private mount here: {probe.stderr.decode().strip()}")
    done = subprocess.run(
        [*unshare, *command], capture_output=True, text=True, check=False, timeout=patience()
    )
    assert done.returncode == 0, done.stderr


def test_flush_syncs(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    ram = Ram.flat(8192)
    write = operation(VIRTIO_BLK_T_OUT, 0, [(0, 512)])
    assert run(image, ram, write) == [0]
    assert synced == []
    assert run(image, ram, operation(VIRTIO_BLK_T_FLUSH)) == [0]
    assert synced == [image.fd]


@pytest.mark.interpreted
def test_a_durable_write_syncs_after_it_wrote(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = os.pwritev

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append("pwritev")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("fdatasync"))
    write = operation(VIRTIO_BLK_T_OUT, 0, [(0, 512)])
    read = operation(VIRTIO_BLK_T_IN, 0, [(0, 512)])
    write.durable = read.durable = True
    assert run(image, Ram.flat(8192), write, read) == [0, 0]
    assert calls == ["pwritev", "fdatasync"]


def test_after_a_failed_sync_no_sync_succeeds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ram = Ram.flat(8192)
    image = Image(path)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        assert run(image, ram, operation(VIRTIO_BLK_T_FLUSH)) == [errno.EIO]
    durable = operation(VIRTIO_BLK_T_OUT, 0, [(0, 512)])
    durable.durable = True
    plain = operation(VIRTIO_BLK_T_OUT, 0, [(0, 512)])
    assert run(image, ram, operation(VIRTIO_BLK_T_FLUSH), durable, plain) == [errno.EIO] * 2 + [0]
    image.close()

    image = Image(path)
    assert run(image, ram, operation(VIRTIO_BLK_T_FLUSH)) == [0]
    image.close()
