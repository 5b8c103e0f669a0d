"""The engine on io_uring: its requests to the kernel, and a kernel that takes its time."""

import errno
import fcntl
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from blk_engines import PATIENCE_MS, wait
from blk_host import require_direct
from blk_operations import flush, operation, over, read, readable, write
from blk_ranges import DISCARD, ZEROES

from pykvm.devices.virtio_blk import CacheMode, Image
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines import thread_pool
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.engines.uring import IoUringEngine
from pykvm.devices.virtio_blk.image.allocation import Allocation
from pykvm.host import io_uring
from pykvm.host.io_uring import (
    IORING_FSYNC_DATASYNC,
    IORING_OP_FALLOCATE,
    IORING_OP_FSYNC,
    IORING_OP_POLL_ADD,
    IORING_OP_READ,
    IORING_OP_READV,
    IORING_OP_WRITE,
    IORING_OP_WRITEV,
    RWF_DSYNC,
    Ring,
)
from pykvm.memory.guest import GuestMemory

IN, OUT = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
SIZE = 1 << 20
NOP = 0
PROBLEM = io_uring.problem()

pytestmark = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM or "-")


class Kernel(Ring):
    """A ring that is looked at. ``asked`` are (opcode, flags) of the submissions.

    ``instead`` answers in place of the kernel, with a number of submissions to
    take or a negative errno; None lets it answer. ``enters`` counts the system
    calls that submit, and ``taken`` the completions.
    """

    def __init__(self, entries: int) -> None:
        super().__init__(entries)
        self.asked: list[tuple[int, int]] = []
        self.enters = 0
        self.taken = 0
        self.instead: Callable[[int], int | None] = lambda to_submit: None
        self.results: Iterator[int] = iter(())

    def prepare(
        self, opcode: int, fd: int, offset: int, address: int, length: int, flags: int, tag: int
    ) -> None:
        self.asked.append((opcode, flags))
        super().prepare(opcode, fd, offset, address, length, flags, tag)

    def enter(self, to_submit: int, flags: int) -> int:
        if not to_submit:
            return super().enter(to_submit, flags)
        self.enters += 1
        answer = self.instead(to_submit)
        if answer is None:
            return super().enter(to_submit, flags)
        return super().enter(answer, flags) if answer > 0 else answer

    def take(self) -> int:
        self.taken += 1
        tag = super().take()
        self.result = next(self.results, self.result)
        return tag


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(2 * SIZE)
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(random.Random(1).randbytes(SIZE))
    return file


Made = tuple[IoUringEngine, Kernel]


@pytest.fixture
def make(path: Path, memory: GuestMemory) -> Iterator[Callable[..., Made]]:
    """Makes engines that are closed, with everything done, at the end."""
    made: list[tuple[IoUringEngine, Image]] = []

    def maker(cache: CacheMode = CacheMode.WRITEBACK, alignment: int = 0) -> Made:
        if cache.direct:
            require_direct(path.parent)
        image = Image(path, cache=cache)
        image.alignment = alignment or image.alignment
        kernels: list[Kernel] = []

        def make_ring(entries: int) -> Kernel:
            kernels.append(Kernel(entries))
            return kernels[0]

        made.append((IoUringEngine(image, memory.ram, make_ring=make_ring), image))
        return made[-1][0], kernels[0]

    yield maker
    for engine, image in made:
        engine.close()
        image.close()


# -- requests to the kernel ---------------------------------------------------------------


def test_a_batch_is_one_system_call(make: Callable[..., Made]) -> None:
    engine, kernel = make()
    batch = [read(1024 * i) for i in range(200)]
    engine.submit(batch)
    wait(engine, 200)
    assert kernel.enters == 1
    assert [op.moved for op in batch] == [1024] * 200


def test_one_segment_needs_no_iovec(make: Callable[..., Made]) -> None:
    engine, kernel = make()
    two = [(0, 512), (4096, 512)]
    engine.submit([read(), write(4096), operation(IN, 0, two), operation(OUT, 8192, two)])
    wait(engine, 4)
    opcodes = [IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV]
    assert kernel.asked == [(opcode, 0) for opcode in opcodes]


def test_the_ring_executes_direct_flushes_and_durable_writes(make: Callable[..., Made]) -> None:
    engine, kernel = make(CacheMode.NONE)
    durable = operation(OUT, 0, [(0, 4096)])
    durable.durable = True
    durable_read = operation(IN, 4096, [(4096, 4096)])
    durable_read.durable = True
    engine.submit([flush(), durable, durable_read])
    wait(engine, 3)
    assert kernel.asked == [
        (IORING_OP_FSYNC, IORING_FSYNC_DATASYNC),
        (IORING_OP_WRITE, RWF_DSYNC),
        (IORING_OP_READ, 0),
    ]


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
def test_the_ring_executes_discards_and_zeroes(
    make: Callable[..., Made], path: Path, cache: CacheMode
) -> None:
    engine, kernel = make(cache)
    batch = [over(DISCARD, 0, 4096), over(ZEROES, 8192, 4096, True), over(ZEROES, 16384, 4096)]
    engine.submit(batch)
    wait(engine, 3)
    assert [(op.error, op.moved) for op in batch] == [(0, 4096)] * 3
    # Threads execute the operations that the filesystem refuses, and the ring polls the threads.
    assert kernel.asked[:3] == [(IORING_OP_FALLOCATE, 0)] * 3
    disk = path.read_bytes()
    assert disk[:4096] == disk[8192:12288] == disk[16384:20480] == bytes(4096)


def test_a_filesystem_without_discards_and_zeroes_is_asked_once(
    make: Callable[..., Made], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a thread writes zeros, and the next ones go to it at once."""

    def ioctl(fd: int, request: int, argument: bytes) -> int:
        raise OSError(errno.EOPNOTSUPP, "injected")

    engine, kernel = make()
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    for asked in (1, 1):
        kernel.results = iter([-errno.EOPNOTSUPP])
        zeroes = over(ZEROES, 4096, 8192, True)
        engine.submit([zeroes])
        wait(engine, 1)
        assert (zeroes.error, zeroes.moved) == (0, 8192)
        assert [opcode for opcode, _ in kernel.asked].count(IORING_OP_FALLOCATE) == asked
    assert path.read_bytes()[4096:12288] == bytes(8192)


def test_an_operation_that_the_filesystem_refuses_goes_to_a_thread(
    make: Callable[..., Made], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mode of 0 would allocate space and leave the data as they are."""
    engine, kernel = make()
    modes = iter([16 | 1, 0])
    monkeypatch.setattr(Allocation, "mode", lambda *args: next(modes))
    zeroes = over(ZEROES, 4096, 4096)
    engine.submit([zeroes])
    wait(engine, 1)
    assert (zeroes.error, zeroes.moved) == (0, 4096)
    assert IORING_OP_FALLOCATE not in {opcode for opcode, _ in kernel.asked}
    assert path.read_bytes()[4096:8192] == bytes(4096)


def test_threads_execute_durable_zeroes(make: Callable[..., Made]) -> None:
    engine, kernel = make()
    (zeroes := over(ZEROES, 0, 4096)).durable = True
    engine.submit([zeroes])
    wait(engine, 1)
    assert (zeroes.error, zeroes.moved) == (0, 4096)
    assert {opcode for opcode, _ in kernel.asked} == {IORING_OP_POLL_ADD}


def test_threads_execute_cached_flushes_and_durable_writes(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring only watches the threads that have them."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    engine, kernel = make()
    durable = write()
    durable.durable = True
    engine.submit([flush(), durable, read(4096)])
    wait(engine, 3)
    assert len(synced) == 2
    assert {opcode for opcode, _ in kernel.asked} == {IORING_OP_POLL_ADD, IORING_OP_READ}


def test_threads_execute_unaligned_transfers(make: Callable[..., Made]) -> None:
    engine, kernel = make(CacheMode.NONE)
    batch = [operation(kind, 4096, [(1, 512)]) for kind in (IN, OUT)]
    for one in batch:
        engine.submit([one])
        wait(engine, 1)
    assert [(op.error, op.moved) for op in batch] == [(0, 512)] * 2
    assert {opcode for opcode, _ in kernel.asked} == {IORING_OP_POLL_ADD}


def test_writes_to_large_blocks_take_turns(make: Callable[..., Made]) -> None:
    """Whoever rewrites the rest of a block holds a lock that the ring cannot hold."""
    engine, kernel = make(CacheMode.NONE, alignment=4096)
    engine.submit([operation(kind, 8192 * kind, [(8192 * kind, 8192)]) for kind in (IN, OUT)])
    wait(engine, 2)
    assert {opcode for opcode, _ in kernel.asked} == {IORING_OP_POLL_ADD, IORING_OP_READ}


# -- a kernel that does not take all at once ---------------------------------------


def test_a_kernel_that_takes_only_some_submissions(make: Callable[..., Made], path: Path) -> None:
    engine, kernel = make()
    kernel.instead = lambda to_submit: min(to_submit, 3)
    batch = [write(1024 * i) for i in range(10)]
    engine.submit(batch)
    wait(engine, 10)
    assert kernel.enters == 4
    assert [op.moved for op in batch] == [1024] * 10


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOMEM])
@pytest.mark.parametrize("after", [0, 2])
def test_a_kernel_that_takes_nothing_for_a_while(
    make: Callable[..., Made], error: int, after: int
) -> None:
    """Whether or not something is under way whose completion makes room."""
    engine, kernel = make()
    answers = iter([after] if after else [])
    refusals = iter([-error] * 3)
    kernel.instead = lambda to_submit: next(answers, None) or next(refusals, None)
    segments = [(0, 512), (8192, 512)]
    batch = [operation(IN, 1024 * i, segments) for i in range(10)]
    engine.submit(batch)
    wait(engine, 10)
    assert kernel.enters == 4 + bool(after)
    assert [op.moved for op in batch] == [1024] * 10


def test_a_kernel_that_wants_its_completions_taken_first(make: Callable[..., Made]) -> None:
    engine, kernel = make()
    first = iter([4])
    kernel.instead = lambda to_submit: next(first, None if kernel.taken else -errno.EBUSY)
    batch = [read(1024 * i) for i in range(10)]
    engine.submit(batch)
    assert not kernel.taken
    wait(engine, 10)
    assert [op.moved for op in batch] == [1024] * 10


def test_submissions_that_the_kernel_did_not_take_keep_their_segments(
    make: Callable[..., Made], memory: GuestMemory, path: Path
) -> None:
    """More segments than there are iovecs, while the kernel still has to read the first ones."""
    engine, kernel = make()
    content = path.read_bytes()
    answers = iter([1, -errno.EBUSY, -errno.EBUSY])
    kernel.instead = lambda to_submit: next(answers, None)
    step = 128 * 1024
    batch = [
        operation(IN, step * i, [(step * i + 256 * part, 256) for part in range(512)])
        for i in range(8)
    ]
    engine.submit(batch)
    wait(engine, 8)
    assert memory.ram.bytes[:SIZE] == content


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN])
def test_an_operation_for_which_the_ring_did_not_wait_goes_to_a_thread(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    watched = threading.Event()

    class Slow(SyncEngine):
        """Completes only after the ring polls the threads."""

        def submit(self, operations: Sequence[Operation]) -> None:
            assert watched.wait(PATIENCE_MS / 1000)
            super().submit(operations)

    def instead(to_submit: int) -> None:
        if kernel.asked[-1][0] == IORING_OP_POLL_ADD:
            watched.set()

    monkeypatch.setattr(thread_pool, "SyncEngine", Slow)
    engine, kernel = make()
    kernel.instead = instead
    kernel.results = iter([-error])
    engine.submit([one := read()])
    wait(engine, 1)
    assert (one.error, one.moved) == (0, 1024)
    assert [opcode for opcode, _ in kernel.asked] == [IORING_OP_READ, IORING_OP_POLL_ADD]


def test_a_ring_that_does_not_work_is_a_bug_and_leaves_nothing_behind(
    make: Callable[..., Made],
) -> None:
    engine, kernel = make()
    batch = [read(), flush(), write(4096)]
    kernel.instead = lambda to_submit: -errno.EBADF
    with pytest.raises(OSError, match="io_uring_enter"):
        engine.submit(batch)
    kernel.instead = lambda to_submit: None
    wait(engine, 3)
    assert [op.error for op in batch] == [errno.EIO, 0, errno.EIO]


def test_a_bug_in_a_thread_loses_nothing_of_the_ring(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(fd: int) -> None:
        raise ZeroDivisionError

    engine, _ = make()
    monkeypatch.setattr(os, "fdatasync", buggy)
    batch = [flush(), read()]
    engine.submit(batch)
    assert readable(engine._threads.notifier, PATIENCE_MS)
    done: list[Operation] = []

    def collect() -> None:
        while readable(engine.notifier, PATIENCE_MS):
            done.extend(engine.completions())

    with pytest.raises(ZeroDivisionError):
        collect()
    done += wait(engine, 2 - len(done))
    assert {*done} == {*batch}
    assert [(op.error, op.moved) for op in batch] == [(errno.EIO, 0), (0, 1024)]
