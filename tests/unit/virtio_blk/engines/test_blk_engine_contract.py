"""The contract that every engine keeps; test_blk_engine_sync.py tests more of the sync engine.

The contract (``devices/virtio_blk/engines/base.py``): each operation is executed
once and comes back once, with its own ``error`` and ``moved``; the notifier is
readable while completions wait; what was not started when the engine was
stopped is cancelled; after ``close`` nothing is left, in memory or of
descriptors and threads.
"""

import errno
import itertools
import os
import random
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blk_engines import engine_on, engines, results, wait
from blk_host import filesystem, overlay_of
from blk_operations import flush, operation, over, readable
from blk_ranges import ZEROES
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import CacheMode, Engine, EngineFactory, Image
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.image import host_limits
from pykvm.hot.words import longs
from pykvm.memory.ram import Ram

IN, OUT, FLUSH = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH
SIZE = 1 << 20
RAM = 2 << 20

pytestmark = engines()


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(content)
    return file


@contextmanager
def made(
    factory: EngineFactory, path: Path, cache: CacheMode = CacheMode.WRITEBACK
) -> Iterator[tuple[Engine, Ram, Image]]:
    """An engine on the image at ``path``, with memory full of something."""
    image = Image(path, cache=cache)
    with engine_on(image, factory, RAM) as (engine, ram):
        ram.bytes[:] = random.Random(2).randbytes(RAM)
        yield engine, ram, image


def test_reads_and_writes(
    factory: EngineFactory, path: Path, content: bytes, cache: CacheMode
) -> None:
    with made(factory, path, cache) as (engine, ram, _):
        read = operation(IN, 8192, [(4096, 4096)])
        write = operation(OUT, 0, [(8192, 4096)])
        engine.submit([read, write])
        wait(engine, 2)
        assert results([read, write]) == [(0, 4096)] * 2
        assert ram.bytes[4096:8192] == content[8192:12288]
        assert path.read_bytes() == bytes(ram.bytes[8192:12288]) + content[4096:]


def test_segments_keep_their_order(
    factory: EngineFactory, path: Path, content: bytes, cache: CacheMode
) -> None:
    """As many as one system call takes, the first of them last in memory."""
    places = [(512 * index, 512) for index in reversed(range(1024))]
    with made(factory, path, cache) as (engine, ram, _):
        write = operation(OUT, 512 * 1024, places)
        expected = b"".join(ram.bytes[at : at + size] for at, size in places)
        engine.submit([write])
        wait(engine, 1)
        reads = [operation(IN, at, [(1 << 20 | at, 512), (at, 512)]) for at in (0, 4096)]
        reads.append(operation(IN, 1024, places))
        engine.submit(reads[:2])
        wait(engine, 2)
        assert ram.bytes[4096:4608] == content[4608:5120]
        assert ram.bytes[(1 << 20) + 4096 :][:512] == content[4096:4608]
        engine.submit(reads[2:])
        wait(engine, 1)
        got = b"".join(ram.bytes[at : at + size] for at, size in places)
        assert results([write, *reads]) == [(0, 524288), (0, 1024), (0, 1024), (0, 524288)]
    disk = path.read_bytes()
    assert disk == content[:524288] + expected
    assert got == disk[1024 : 1024 + 524288]


def test_blocks_that_are_larger_than_they_seemed(
    factory: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holes of an overlay say nothing of the disk that will hold them, of blocks of 4096."""
    monkeypatch.setattr(host_limits, "_told_alignment", lambda fd: None)
    with filesystem(tmp_path, block=4096) as below, overlay_of(tmp_path, below) as folder:
        path = folder / "disk"
        with path.open("wb") as file:
            file.truncate(SIZE)
        with made(factory, path, CacheMode.NONE) as (engine, ram, image):
            assert (image.alignment, image.edges) == (512, True)
            disk = bytearray(SIZE)
            batch = []
            for sector, count in ((1, 1), (8, 8), (31, 2), (64, 64)):
                batch.append(operation(OUT, 512 * sector, [(512 * sector, 512 * count)]))
                part = slice(512 * sector, 512 * (sector + count))
                disk[part] = ram.bytes[part]
            batch.append(over(ZEROES, 512 * 66, 1024, unmap=True))
            disk[512 * 66 : 512 * 68] = bytes(1024)
            for op in batch:
                engine.submit([op])
                wait(engine, 1)
            assert results(batch) == [(0, op.length) for op in batch]
            assert image.alignment == 4096
            read = operation(IN, 512, [(1 << 20, SIZE // 2)])
            engine.submit([read])
            wait(engine, 1)
            assert results([read]) == [(0, SIZE // 2)]
            assert ram.bytes[1 << 20 :][: SIZE // 2] == disk[512 : 512 + SIZE // 2]
        assert path.read_bytes() == disk


def test_unaligned_transfers(
    factory: EngineFactory, path: Path, content: bytes, cache: CacheMode
) -> None:
    """Goes all the way round a host that refuses it."""
    with made(factory, path, cache) as (engine, ram, _):
        batch = [
            operation(IN, 512, [(8192 + 3, 1024)]),
            operation(OUT, 4096, [(65537, 512)]),
            operation(IN, 1 << 16, [(1 << 20, 100), (100, 412)]),
            operation(IN, 1 << 17, [(1 << 18, 4096)]),
        ]
        engine.submit(batch)
        wait(engine, 4)
        assert results(batch) == [(0, 1024), (0, 512), (0, 512), (0, 4096)]
        assert ram.bytes[8195:9219] == content[512:1536]
        assert ram.bytes[100:512] == content[(1 << 16) + 100 : (1 << 16) + 512]
        assert ram.bytes[1 << 18 : (1 << 18) + 4096] == content[1 << 17 : (1 << 17) + 4096]
        written = bytes(ram.bytes[65537 : 65537 + 512])
    assert path.read_bytes() == content[:4096] + written + content[4608:]


@pytest.mark.parametrize("segments", [[(0, 8192)], [(0, 4096), (4096, 4096)]])
def test_the_end_of_a_file_is_a_short_transfer(
    factory: EngineFactory, path: Path, cache: CacheMode, segments: list[tuple[int, int]]
) -> None:
    with made(factory, path, cache) as (engine, _, _):
        os.truncate(path, 4096)
        reads = [operation(IN, at, segments) for at in (8192, 0)]
        engine.submit(reads)
        wait(engine, 2)
        assert results(reads) == [(0, 0), (0, 4096)]


def test_errors_are_per_operation(factory: EngineFactory, path: Path) -> None:
    """A hole beyond the limit cannot be filled; the bytes beside it can be written."""
    path.write_bytes(b"")
    os.truncate(path, SIZE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with made(factory, path) as (engine, _, _):
        writes = [operation(OUT, at, [(0, 1024)]) for at in (3584, 8192, 0)]
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            engine.submit(writes)
            wait(engine, 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert results(writes) == [(0, 512), (errno.EFBIG, 0), (0, 1024)]
        read = operation(IN, 0, [(0, 512)])
        engine.submit([read])
        wait(engine, 1)
        assert results([read]) == [(0, 512)]


def test_flushes_and_durable_writes(
    factory: EngineFactory, path: Path, content: bytes, cache: CacheMode
) -> None:
    with made(factory, path, cache) as (engine, ram, _):
        write = operation(OUT, 4096, [(0, 4096)])
        write.durable = True
        unaligned = operation(OUT, 512, [(1, 512)])
        unaligned.durable = True
        batch = [flush(), write, unaligned, flush()]
        engine.submit(batch)
        wait(engine, 4)
        assert results(batch) == [(0, 0), (0, 4096), (0, 512), (0, 0)]
        expected = content[:512] + ram.bytes[1:513] + content[1024:4096] + ram.bytes[:4096]
    assert path.read_bytes() == expected + content[8192:]


def test_after_a_failed_sync_of_a_cached_file_none_succeeds(
    factory: EngineFactory, path: Path
) -> None:
    with made(factory, path) as (engine, _, image):
        image.sync_error = errno.ENOSPC
        durable = operation(OUT, 0, [(0, 512)])
        durable.durable = True
        batch = [flush(), durable, operation(OUT, 4096, [(0, 512)])]
        engine.submit(batch)
        wait(engine, 3)
        assert [op.error for op in batch] == [errno.EIO, errno.EIO, 0]


def test_a_failed_sync_fails_all_syncs_at_once(
    factory: EngineFactory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost write once; here too, to the first of several at once."""
    numbers = itertools.count()
    another = threading.Event()

    def fdatasync(fd: int) -> None:
        if next(numbers):
            another.set()
            return
        another.wait(0.1)  # nobody should come; but whoever does is not to go first
        raise OSError(errno.ENOSPC, "injected")

    with made(factory, path) as (engine, _, _):
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        batch = [flush() for _ in range(16)]
        engine.submit(batch)
        wait(engine, 16)
        assert sorted(op.error for op in batch) == [errno.EIO] * 15 + [errno.ENOSPC]


def test_a_read_only_disk_accepts_flushes(
    factory: EngineFactory, path: Path, cache: CacheMode
) -> None:
    image = Image(path, True, cache)
    engine = factory(image, Ram.flat(4096))
    operations = [flush(), flush()]
    engine.submit(operations)
    wait(engine, 2)
    assert results(operations) == [(0, 0)] * 2
    engine.close()
    image.close()


def test_hundreds_at_once(
    factory: EngineFactory, path: Path, content: bytes, cache: CacheMode
) -> None:
    """More operations, and more segments, than any ring or pool takes."""
    with made(factory, path, cache) as (engine, ram, _):
        order = random.Random(3).sample(range(1024), 1024)
        batch = [
            operation(IN, 1024 * i, [(1024 * at, 512), (1024 * at + 512, 512)])
            if i % 3
            else operation(IN, 1024 * i, [(1024 * at, 1024)])
            for i, at in enumerate(order)
        ]
        engine.submit(batch[:900])
        engine.submit(batch[900:])
        wait(engine, 1024)
        assert results(batch) == [(0, 1024)] * 1024
        for i, at in enumerate(order):
            assert ram.bytes[1024 * at : 1024 * at + 1024] == content[1024 * i : 1024 * i + 1024]


def test_the_notifier_is_quiet_after_all_completions_are_taken(
    factory: EngineFactory, path: Path
) -> None:
    with made(factory, path) as (engine, _, _):
        for _ in range(20):
            engine.submit([operation(IN, 0, [(0, 4096)]), flush()])
            wait(engine, 2)
        # One late notification is allowed, a notifier that stays readable is not.
        if engine.notifier >= 0 and readable(engine.notifier, 50):
            assert not engine.completions()
            assert not readable(engine.notifier, 50)


def test_a_stopped_engine_starts_nothing(
    factory: EngineFactory, path: Path, content: bytes
) -> None:
    with made(factory, path) as (engine, _, _):
        engine.submit([operation(IN, 0, [(0, 512)])])
        wait(engine, 1)
        engine.stop()
        batch = [operation(OUT, 0, [(0, 512)]), flush(), operation(IN, 0, [(0, 512)])]
        engine.submit(batch)
        wait(engine, 3)
        assert [op.error for op in batch] == [errno.ECANCELED] * 3
    assert path.read_bytes() == content


def test_a_stop_with_many_operations_in_flight(
    factory: EngineFactory, path: Path, cache: CacheMode
) -> None:
    """From another thread: each operation comes back, done or cancelled, and the file agrees."""
    with made(factory, path, cache) as (engine, ram, _):
        ram.bytes[:SIZE] = bytes(SIZE)
        batch = [operation(OUT, 4096 * i, [(4096 * i, 4096)]) for i in range(256)]
        stopper = threading.Thread(target=engine.stop)
        engine.submit(batch[:128])
        stopper.start()
        engine.submit(batch[128:])
        wait(engine, 256)
        stopper.join()
        assert {(op.error, op.moved) for op in batch} <= {(0, 4096), (errno.ECANCELED, 0)}
    disk = path.read_bytes()
    for op in batch:
        zeros = disk[op.offset : op.offset + 4096] == bytes(4096)
        assert zeros == (not op.error)


def test_a_closed_engine_leaves_nothing_behind(factory: EngineFactory, path: Path) -> None:
    def held() -> tuple[list[str], int]:
        return sorted(os.listdir("/proc/self/fd")), threading.active_count()

    with made(factory, path):
        pass
    before = held()
    for _ in range(3):
        with made(factory, path) as (engine, ram, _):
            engine.submit([operation(IN, 0, [(0, 4096)]), flush()])
            wait(engine, 2)
            ram.bytes[:4096] = bytes(4096)
        # No other program uses the file, so its lock is free.
        Image(path).close()
    assert held() == before


# -- random batches -------------------------------------------------------------

BLOCKS = 64
block = st.integers(0, BLOCKS - 1)
asked = st.tuples(
    st.sampled_from([IN, IN, OUT, OUT, OUT, FLUSH]),
    block,  # on the disk
    st.integers(1, 4),
    st.sampled_from([[], [1], [512], [512, 1024], [100, 3]]),  # where the data is cut
    st.sampled_from([0, 0, 0, 1, 512]),  # how far from a block's start it is in memory
    st.booleans(),
)


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batches=st.lists(st.lists(asked, max_size=24), max_size=4), data=st.data())
def test_any_batch_does_what_a_bytearray_does(
    factory: EngineFactory,
    path: Path,
    cache: CacheMode,
    batches: list[list[tuple[int, int, int, list[int], int, bool]]],
    data: st.DataObject,
) -> None:
    """No two operations under way touch one place, as the device sees to."""
    disk = bytearray(random.Random(4).randbytes(BLOCKS * 4096))
    path.write_bytes(disk)
    with made(factory, path, cache) as (engine, ram, _):
        model = bytearray(ram.bytes)
        under_way: set[Operation] = set()
        taken: set[int] = set()
        for batch in batches:
            operations = []
            for number, (kind, start, count, cuts, shift, durable) in enumerate(batch):
                blocks = range(start, min(start + count, BLOCKS)) if kind != FLUSH else range(0)
                if not taken.isdisjoint(blocks):
                    continue
                taken.update(blocks)
                op = operation(kind, 4096 * start if blocks else 0)
                op.durable = durable
                at = number * 20480 + shift
                left = op.length = 4096 * len(blocks)
                offsets, lengths = [], []
                for size in [*cuts, left] if left else []:
                    size = min(size, left)  # noqa: PLW2901
                    offsets.append(at)
                    lengths.append(size)
                    where = op.offset + op.length - left
                    if kind == OUT:
                        disk[where : where + size] = model[at : at + size]
                    else:
                        model[at : at + size] = disk[where : where + size]
                    at += size
                    left -= size
                op.offsets, op.lengths = longs(offsets), longs(lengths)
                op.last = len(offsets)
                operations.append(op)
            cut = data.draw(st.integers(0, len(operations)))
            for part in (operations[:cut], operations[cut:]):
                if part:
                    engine.submit(part)
                under_way.update(part)
                under_way.difference_update(engine.completions())
            # The buffers of the next batch are the same ones.
            under_way.difference_update(wait(engine, len(under_way)))
            taken.clear()
            assert [(op.error, op.moved) for op in operations] == [
                (0, op.length) for op in operations
            ]
        assert ram.bytes == model
    assert path.read_bytes() == disk
