"""``snapshot=on``: the guest sees an ordinary disk, and the file does not change."""

import errno
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blk_device import FLUSH, IN, OK, OUT, block_device
from blk_device import Disk as StartedDisk
from blk_engines import engine_on, engines, wait
from blk_operations import operation, over
from blk_ranges import DISCARD, ZEROES
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import CacheMode, Engine, EngineFactory, Image, SyncEngine
from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine
from pykvm.devices.virtio_blk.layers import temporary
from pykvm.devices.virtio_blk.layers.overlay import MOST_PARTS, OverlayImage
from pykvm.devices.virtio_blk.open import open_image
from pykvm.errors import UsageError
from pykvm.machine import DiskConfig
from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport

SIZE = 1 << 18
SECTORS = SIZE >> 9
RAM = 1 << 20
BUFFER = SIZE
"""Where in RAM what was read goes; below is what is written."""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = tmp_path / "disk"
    file.write_bytes(random.Random(1).randbytes(SIZE))
    return file


LIMIT = 40960
"""Bytes of a file at most, so that the disk takes eight of 32768."""


@pytest.fixture(params=[False, True], ids=["one file", "several files"])
def several(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the temporary file can be as large as the disk, or there have to be several."""
    if request.param:
        limit_files(monkeypatch, LIMIT)
    return bool(request.param)


def limit_files(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A filesystem whose files are not larger than ``limit`` bytes."""
    real = os.ftruncate

    def ftruncate(fd: int, size: int) -> None:
        if size > limit and not os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        real(fd, size)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    monkeypatch.setattr(temporary, "UNIT", 8192)


@contextmanager
def made(
    factory: EngineFactory, path: Path, cache: CacheMode = CacheMode.WRITEBACK
) -> Iterator[tuple[Engine, Ram, OverlayImage]]:
    """An engine on a snapshot of the image at ``path``, which is as it was afterwards."""
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_blocks
    image = OverlayImage(Image(path, True, cache))
    with engine_on(image, image.wrap(factory), RAM) as (engine, ram):
        yield engine, ram, image
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_blocks) == before
    assert os.listdir(path.parent) == [path.name]


def execute(engine: Engine, kind: int, sector: int = 0, count: int = 0) -> None:
    """All of it or nothing, as pieces that come short go on."""
    where = sector << 9
    length = count << 9
    if kind in (FLUSH, DISCARD, ZEROES):
        asked = over(kind, where, 0 if kind == FLUSH else length, unmap=bool(sector % 2))
        engine.submit([asked])
        wait(engine, 1)
        assert (asked.error, asked.moved) == (0, asked.length)
        return
    at = where if kind == OUT else BUFFER + where
    while length:
        asked = operation(
            kind, where, [(at, length // 2), (at + length // 2, length - length // 2)]
        )
        engine.submit([asked])
        wait(engine, 1)
        assert not asked.error
        assert asked.moved
        where += asked.moved
        at += asked.moved
        length -= asked.moved


steps = st.lists(
    st.tuples(
        st.sampled_from([IN, OUT, OUT, DISCARD, ZEROES, FLUSH]),
        st.integers(0, 200),
        st.integers(1, 200),
    ),
    max_size=12,
)


@engines()
@settings(
    max_examples=examples(12),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=steps)
def test_any_sequence_does_what_a_bytearray_does(
    factory: EngineFactory,
    path: Path,
    cache: CacheMode,
    several: bool,
    steps: list[tuple[int, int, int]],
) -> None:
    disk = bytearray(path.read_bytes())
    with made(factory, path, cache) as (engine, ram, image):
        assert bool(image._more) == several
        for number, (kind, sector, count) in enumerate([*steps, (IN, 0, SECTORS)]):
            count = min(count, SECTORS - sector)  # noqa: PLW2901
            start, end = sector << 9, sector + count << 9
            if kind == OUT:
                data = random.Random(number).randbytes(end - start)
                ram.bytes[start:end] = disk[start:end] = data
            elif kind in (DISCARD, ZEROES):  # where the temporary file is, both leave zeros
                disk[start:end] = bytes(end - start)
            execute(engine, kind, sector, count)
            if kind == IN:
                assert ram.bytes[BUFFER + start : BUFFER + end] == disk[start:end]


@engines(wrapped=False)
def test_a_read_in_many_parts_comes_short_and_goes_on(factory: EngineFactory, path: Path) -> None:
    """A guest that writes every other sector does not decide how much of our memory that takes."""
    disk = bytearray(path.read_bytes())
    with made(factory, path) as (engine, ram, _):
        for sector in range(0, SECTORS, 2):
            execute(engine, OUT, sector, 1)
            disk[sector << 9 : sector + 1 << 9] = bytes(512)
        asked = operation(IN, 0, [(BUFFER, SIZE)])
        engine.submit([asked])
        wait(engine, 1)
        assert (asked.error, asked.moved) == (0, MOST_PARTS << 9)
        execute(engine, IN, 0, SECTORS)
        assert ram.bytes[BUFFER : BUFFER + SIZE] == disk


@engines(wrapped=False)
def test_a_part_that_comes_short_ends_the_whole(factory: EngineFactory, path: Path) -> None:
    """The image was truncated although it is locked; written data are still there."""
    with made(factory, path) as (engine, _, _):
        execute(engine, OUT, 9, 1)
        inode = path.stat()
        content = path.read_bytes()
        os.truncate(path, 10 << 9)
        asked = operation(IN, 8 << 9, [(BUFFER, 4 << 9)])
        engine.submit([asked])
        wait(engine, 1)
        path.write_bytes(content)
        os.utime(path, ns=(inode.st_atime_ns, inode.st_mtime_ns))
        assert (asked.error, asked.moved) == (0, 2 << 9)


@engines(wrapped=False)
def test_a_write_to_two_files_of_which_one_is_full_changes_nothing(
    factory: EngineFactory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_files(monkeypatch, 1 << 17)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with made(factory, path) as (engine, ram, _):
        across = [operation(OUT, (1 << 17) - 4096, [(0, 8192)]) for _ in range(2)]
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
            engine.submit(across[:1])
            wait(engine, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert across[0].error == errno.EFBIG
        execute(engine, IN, 0, SECTORS)
        assert ram.bytes[BUFFER : BUFFER + SIZE] == path.read_bytes()
        engine.submit(across[1:])
        wait(engine, 1)
        assert (across[1].error, across[1].moved) == (0, 8192)
        execute(engine, IN, 0, SECTORS)
        assert ram.bytes[BUFFER + (1 << 17) - 4096 :][:8192] == ram.bytes[:8192]


def test_several_files_change_their_sizes_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost sectors read as zeros afterwards. No more files can be opened by then."""
    limit_files(monkeypatch, 1 << 17)
    with made(SyncEngine, path) as (engine, ram, image):
        execute(engine, OUT, 0, SECTORS)
        for size in (1 << 16, SIZE):
            image.resize(size)
        execute(engine, IN, 0, SECTORS)
        read = ram.bytes[BUFFER : BUFFER + SIZE]
        assert read == bytes(ram.bytes[: 1 << 16]) + bytes(SIZE - (1 << 16))
        with pytest.raises(UsageError, match="file too large"):
            image.resize(SIZE + 8192)


def test_a_limit_of_the_process_is_one_of_the_filesystems(tmp_path: Path) -> None:
    """ulimit -f: no file of 10 MiB, but several of 3."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(10 << 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limits[1]))
        image = OverlayImage(Image(path, readonly=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sizes = [os.fstat(each.fd).st_size for each in (image, *image._more)]
    assert (image.size, sizes) == (10 << 20, [3 << 20, 3 << 20, 3 << 20, 1 << 20])
    image.close()


def test_files_that_are_far_too_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_files(monkeypatch, 1)
    held = os.listdir("/proc/self/fd")
    with pytest.raises(UsageError) as caught:
        open_image(DiskConfig(path, snapshot=True))
    message = str(caught.value)
    assert "file too large for its filesystem or the limit (ulimit -f); set TMPDIR" in message
    assert "a folder on a filesystem with larger files" in message
    assert os.listdir("/proc/self/fd") == held


@engines(wrapped=False)
def test_a_write_that_fails_changes_nothing(factory: EngineFactory, path: Path) -> None:
    """As when the folder of the temporary file is full."""
    disk = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with made(factory, path) as (engine, ram, _):
        ram.bytes[:SIZE] = bytes(SIZE)
        failing = operation(OUT, 1 << 14, [(0, 4096)])
        partial = operation(OUT, (1 << 13) - 512, [(0, 4096)])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, limits[1]))
            engine.submit([failing, partial])
            wait(engine, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (failing.error, partial.error, partial.moved) == (errno.EFBIG, 0, 512)
        execute(engine, IN, 0, SECTORS)
        expected = disk[: (1 << 13) - 512] + bytes(512) + disk[1 << 13 :]
        assert ram.bytes[BUFFER : BUFFER + SIZE] == expected


@pytest.mark.parametrize("factory", [SyncEngine, ThreadsEngine])
def test_written_data_outlive_a_reset(factory: EngineFactory, path: Path) -> None:
    """With a device around it, which may write."""
    before = path.read_bytes()
    image, engine, _ = open_image(DiskConfig(path, snapshot=True, engine=factory))
    device = block_device(image, engine=engine)
    for expected in (before[:512], b"new!" * 128):
        transport = FakeTransport(device)
        transport.start()
        disk = StartedDisk(transport, device)
        assert disk.do(IN, 0, size=1024) == (OK, expected + before[512:1024])
        assert disk.do(OUT, 0, b"new!" * 128) == (OK, b"")
        assert disk.do(FLUSH) == (OK, b"")
        transport.close()
    device.close()
    assert path.read_bytes() == before


def test_several_snapshots_share_a_file_and_none_sees_the_others_writes(path: Path) -> None:
    with made(SyncEngine, path) as (one, ram, _), made(SyncEngine, path) as (other, other_ram, _):
        execute(one, OUT, 3, 2)
        execute(one, IN, 3, 2)
        execute(other, IN, 3, 2)
        assert ram.bytes[BUFFER + 1536 : BUFFER + 2560] == bytes(1024)
        assert other_ram.bytes[BUFFER + 1536 : BUFFER + 2560] == path.read_bytes()[1536:2560]
        with pytest.raises(UsageError, match="in use: this process reads it"):
            Image(path)
        Image(path, readonly=True).close()


def test_a_writer_shares_its_file_with_no_snapshot(path: Path) -> None:
    writer = Image(path)
    with pytest.raises(UsageError, match="this process writes to it"):
        open_image(DiskConfig(path, snapshot=True))
    writer.close()


def test_no_place_for_the_temporary_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(path.parent / "nowhere"))
    held = os.listdir("/proc/self/fd")
    with pytest.raises(UsageError) as caught:
        open_image(DiskConfig(path, snapshot=True))
    assert str(caught.value) == (
        f"no temporary file for {path} can be made in {path.parent}/nowhere: "
        "no such file or directory; set TMPDIR to a folder with room for the guest's writes"
    )
    assert os.listdir("/proc/self/fd") == held


def test_the_folder_that_needs_space_is_known(path: Path) -> None:
    image, _, _ = open_image(DiskConfig(path, snapshot=True))
    assert image.room == str(path.parent)
    image.close()
    image, _, _ = open_image(DiskConfig(path))
    assert image.room == ""
    image.close()


def test_a_read_only_disk_needs_no_temporary_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    image, _, _ = open_image(DiskConfig(path, snapshot=True, readonly=True))
    assert image.readonly
    image.close()
