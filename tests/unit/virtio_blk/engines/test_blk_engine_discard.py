"""Discards and zeroes of every engine, on hosts that support them and on others."""

import errno
import fcntl
import os
import random
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blk_engines import engine_on, engines, run, wait
from blk_host import loop_device
from blk_operations import over
from blk_operations import write as write_of
from blk_ranges import DISCARD, ZEROES
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import patience

from pykvm.devices.virtio_blk import CacheMode, Engine, EngineFactory, Image
from pykvm.devices.virtio_blk.image.allocation import Allocation
from pykvm.memory.ram import Ram

SIZE = 4 << 20
CONTENT = random.Random(1).randbytes(SIZE)

pytestmark = engines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(CONTENT)
    return file


@contextmanager
def made(
    factory: EngineFactory, path: Path | str, cache: CacheMode = CacheMode.WRITEBACK
) -> Iterator[tuple[Engine, Ram, Image]]:
    image = Image(path, cache=cache)
    with engine_on(image, factory, 1 << 20) as (engine, ram):
        yield engine, ram, image


def refuse(monkeypatch: pytest.MonkeyPatch, error: int) -> list[int]:
    """A host on which every ioctl of a range fails; the list grows by each request."""
    asked: list[int] = []

    def ioctl(fd: int, request: int, argument: bytes) -> int:
        asked.append(request)
        raise OSError(error, "injected")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(Allocation, "mode", lambda *args: 0)  # nor does the ring
    return asked


def zeroed(*parts: tuple[int, int]) -> bytes:
    """CONTENT with these bytes (first, length) made zeros."""
    disk = bytearray(CONTENT)
    for start, length in parts:
        disk[start : start + length] = bytes(length)
    return bytes(disk)


RANGES = [
    (0, 4096),
    (8192, 512),
    (12288 + 512, 1 << 20),
    ((2 << 20) - 512, 4096),
    (SIZE - 512, 512),
]


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroes(factory: EngineFactory, path: Path, cache: CacheMode, unmap: bool) -> None:
    before = path.stat().st_blocks
    with made(factory, path, cache) as (engine, _, _):
        batch = [over(ZEROES, *part, unmap) for part in RANGES]
        assert run(engine, batch) == [(0, length) for _, length in RANGES]
        freed = before - path.stat().st_blocks
    assert path.read_bytes() == zeroed(*RANGES)
    assert (freed >= 2048) == unmap


def test_discards(factory: EngineFactory, path: Path, cache: CacheMode) -> None:
    before = path.stat().st_blocks
    with made(factory, path, cache) as (engine, _, _):
        batch = [over(DISCARD, *part, unmap=True) for part in RANGES]
        assert run(engine, batch) == [(0, length) for _, length in RANGES]
        assert before - path.stat().st_blocks >= 2048
    assert path.stat().st_size == SIZE


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.ENOTTY])
def test_a_host_without_discards_and_zeroes(
    factory: EngineFactory,
    path: Path,
    cache: CacheMode,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
) -> None:
    """Zeros are written, discards do nothing, and it is not asked again."""
    batches = [
        [*(over(ZEROES, *part, unmap=True) for part in RANGES), over(DISCARD, 1 << 21, 1 << 20)]
        for _ in range(2)
    ]
    with made(factory, path, cache) as (engine, _, _):
        asked = refuse(monkeypatch, error)
        assert run(engine, batches[0]) == [(0, op.length) for op in batches[0]]
        assert len(set(asked)) == 2
        asked.clear()
        assert run(engine, batches[1]) == [(0, op.length) for op in batches[1]]
        assert not asked
    assert path.read_bytes() == zeroed(*RANGES)


@pytest.mark.parametrize(
    "error",
    [errno.EINVAL, errno.EBUSY, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.EREMOTEIO],
)
def test_a_host_that_refuses_a_range_is_asked_for_the_next(
    factory: EngineFactory,
    path: Path,
    cache: CacheMode,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
) -> None:
    """Zeros are written, discards do nothing, and the next range is asked for again."""
    with made(factory, path, cache) as (engine, _, _):
        asked = refuse(monkeypatch, error)
        for _ in range(2):
            asked.clear()
            batch = [over(ZEROES, *part, unmap=True) for part in RANGES]
            batch.append(over(DISCARD, 1 << 21, 1 << 20))
            assert run(engine, batch) == [(0, op.length) for op in batch]
            assert len(asked) == 2 * len(RANGES) + 1
    assert path.read_bytes() == zeroed(*RANGES)


def test_an_image_that_must_not_be_changed_says_so(factory: EngineFactory) -> None:
    """A sealed file, for one: the wish is granted by doing nothing, zeroes are an error."""
    fd = os.memfd_create("disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, CONTENT)
    with made(factory, f"/proc/self/fd/{fd}") as (engine, _, _):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert run(engine, [over(DISCARD, 0, 4096)]) == [(0, 4096)]
        assert run(engine, [over(ZEROES, 0, 4096)]) == [(errno.EPERM, 0)]
    assert os.pread(fd, SIZE, 0) == CONTENT
    os.close(fd)


def test_durable_zeroes_are_synced_and_discards_are_not(
    factory: EngineFactory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with made(factory, path) as (engine, _, image):
        batch = [over(DISCARD, 0, 4096), over(ZEROES, 4096, 4096)]
        assert run(engine, batch) == [(0, 4096)] * 2
        assert not synced
        for op in (batch := [over(DISCARD, 0, 4096), over(ZEROES, 4096, 4096)]):
            op.durable = True
        assert run(engine, batch) == [(0, 4096)] * 2
        assert synced == [image.fd]
        image.sync_error = errno.ENOSPC
        (again := over(ZEROES, 0, 512)).durable = True
        engine.submit([again])
        wait(engine, 1)
        assert again.error == errno.EIO


def test_an_error_of_the_host_is_the_operations(
    factory: EngineFactory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(factory, path) as (engine, _, _):
        refuse(monkeypatch, errno.ENOSPC)
        batch = [over(ZEROES, 0, 4096), over(DISCARD, 0, 4096)]
        engine.submit(batch)
        wait(engine, 2)
        assert [op.error for op in batch] == [errno.ENOSPC] * 2


def test_zeros_that_do_not_fit(
    factory: EngineFactory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host takes a part of them, and the result has its size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with made(factory, path) as (engine, _, _):
        refuse(monkeypatch, errno.EOPNOTSUPP)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            batch = [over(ZEROES, 2048, 4096), over(ZEROES, 8192, 512)]
            assert run(engine, batch) == [(0, 2048), (errno.EFBIG, 0)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_stop_ends_the_writing_of_zeros(
    factory: EngineFactory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pieces of a range, from another thread."""
    refuse_again = threading.Event()
    with made(factory, path) as (engine, _, _):
        refuse(monkeypatch, errno.EOPNOTSUPP)
        real = os.pwrite

        def pwrite(fd: int, data: memoryview, offset: int) -> int:
            done = real(fd, data, offset)
            if not refuse_again.is_set():
                refuse_again.set()
                stopper = threading.Thread(target=engine.stop)
                stopper.start()
                stopper.join(patience())
            return done

        monkeypatch.setattr(os, "pwrite", pwrite)
        (op,) = batch = [over(ZEROES, 0, SIZE)]
        engine.submit(batch)
        wait(engine, 1)
        assert op.error == errno.ECANCELED
        assert 0 < op.moved < SIZE
        (op,) = batch = [over(DISCARD, 0, SIZE)]
        engine.submit(batch)
        wait(engine, 1)
        assert (op.error, op.moved) == (errno.ECANCELED, 0)


def test_zeros_of_a_large_range_take_no_memory(
    factory: EngineFactory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    with made(factory, path) as (engine, _, _):
        refuse(monkeypatch, errno.EOPNOTSUPP)

        def pwrite(fd: int, data: memoryview, offset: int) -> int:
            sizes.append(len(data))
            return len(data)

        monkeypatch.setattr(os, "pwrite", pwrite)
        assert run(engine, [over(ZEROES, 512, 1 << 31)]) == [(0, 1 << 31)]
    assert max(sizes) == 1 << 20


@pytest.mark.parametrize("block", [512, 4096])
def test_a_block_device(factory: EngineFactory, path: Path, cache: CacheMode, block: int) -> None:
    with loop_device(path, block) as device, made(factory, device, cache) as (engine, _, image):
        zeroes = [(0, 4096), (8192 + 512, 512), (3 << 20, 1 << 20)]
        batch = [over(ZEROES, *part, unmap=True) for part in zeroes]
        batch += [over(DISCARD, 1 << 20, 1 << 20, unmap=True), over(DISCARD, 512, 3 * 512)]
        assert run(engine, batch) == [(0, op.length) for op in batch]
        image.sync()
        disk = os.open(device, os.O_RDONLY)
        try:
            found = os.pread(disk, SIZE, 0)
        finally:
            os.close(disk)
    expected = zeroed(*zeroes)
    assert found[: 1 << 20] == expected[: 1 << 20]
    assert found[2 << 20 :] == expected[2 << 20 :]
    assert path.stat().st_blocks < SIZE // 512 - 1500  # loop devices free what is discarded


BLOCKS = 64
_asked = st.tuples(
    st.sampled_from([ZEROES, ZEROES, DISCARD, None]),  # None: a write
    st.integers(0, BLOCKS * 8 - 1),
    st.integers(1, 40),
    st.booleans(),
)


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(_asked, max_size=12), max_size=3), able=st.booleans())
def test_any_batch_does_what_a_bytearray_does(
    factory: EngineFactory,
    path: Path,
    cache: CacheMode,
    batches: list[list[tuple[int | None, int, int, bool]]],
    able: bool,
) -> None:
    """No two operations in flight touch one sector; discarded bytes may hold anything."""
    disk = bytearray(CONTENT[: BLOCKS * 4096])
    path.write_bytes(disk)
    unknown: set[int] = set()
    with (
        pytest.MonkeyPatch.context() as patch,
        made(factory, path, cache) as (engine, ram, _),
    ):
        if not able:
            refuse(patch, errno.EOPNOTSUPP)
        ram.bytes[:] = b"w" * len(ram.bytes)
        for batch in batches:
            taken: set[int] = set()
            operations = []
            for kind, first, count, flag in batch:
                sectors = range(first, min(first + count, BLOCKS * 8))
                if not taken.isdisjoint(sectors):
                    continue
                taken.update(sectors)
                length = 512 * len(sectors)
                if kind is None:
                    op = write_of(512 * first, length)
                else:
                    op = over(kind, 512 * first, length, flag)
                op.durable = flag
                operations.append(op)
                disk[512 * first : 512 * first + length] = (
                    b"w" if kind is None else b"\0"
                ) * length
                (unknown.update if kind == DISCARD else unknown.difference_update)(sectors)
            assert run(engine, operations) == [(0, op.length) for op in operations]
    found = path.read_bytes()
    for sector in set(range(BLOCKS * 8)) - unknown:
        place = slice(512 * sector, 512 * sector + 512)
        assert found[place] == disk[place], sector
