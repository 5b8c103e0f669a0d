"""The whole block device with a slow engine: order, and resets in the meantime."""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from blk_device import FLUSH, IN, OK, OUT, Disk, Maker
from patience import ends, goes_on, in_thread, patience

from pykvm.devices.virtio_blk import Image, SyncEngine
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram


class SlowEngine:
    """Completes nothing before :meth:`let_go`; then in its own thread, in any order."""

    def __init__(self, image: Image, ram: Ram) -> None:
        self.notifier = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.immediate = False
        self.inner = SyncEngine(image, ram)
        self.lock = threading.Condition()
        self.waiting: list[Operation] = []
        self.finished: list[Operation] = []
        self.log: list[tuple[str, int]] = []

    def submit(self, operations: Sequence[Operation]) -> None:
        with self.lock:
            self.waiting += operations
            self.log += [("start", op.kind) for op in operations]
            self.lock.notify_all()

    def completions(self) -> Sequence[Operation]:
        with suppress(BlockingIOError):
            os.eventfd_read(self.notifier)
        with self.lock:
            done, self.finished = self.finished, []
        return done

    def wait_for(self, count: int) -> None:
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.waiting) >= count, patience())

    def let_go(self, index: int = -1) -> None:
        """Finish the operation at ``index`` of those waiting."""
        with self.lock:
            operation = self.waiting.pop(index)
            self.inner.submit([operation])
            self.finished += self.inner.completions()
            self.log.append(("end", operation.kind))
        os.eventfd_write(self.notifier, 1)

    def watch(self, watch: Watch) -> bool:
        return False

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self.inner.close()
        os.close(self.notifier)


def slow_engine(disk: Disk) -> SlowEngine:
    engine = disk.device._threads._services[0].engine
    assert isinstance(engine, SlowEngine)
    return engine


def test_completions_out_of_order(make_disk: Maker, disk_path: Path) -> None:
    disk = make_disk(engine=SlowEngine)
    file = disk_path.read_bytes()
    heads = [disk.send(IN, 2 * i, size=512) for i in range(4)]
    disk.transport.submit()
    engine = slow_engine(disk)
    engine.wait_for(4)
    for left in (2, 0, 1, 0):
        engine.let_go(left)
    for i, head in enumerate(heads):
        assert disk.wait(head)[:2] == (OK, file[1024 * i :][:512])


def test_a_flush_starts_after_the_writes_before_it(make_disk: Maker) -> None:
    disk = make_disk(engine=SlowEngine)
    heads = [disk.send(OUT, 0, bytes(512))]
    disk.transport.submit()
    engine = slow_engine(disk)
    engine.wait_for(1)
    heads += [disk.send(OUT, 2, bytes(512)), disk.send(FLUSH), disk.send(IN, 5, size=512)]
    disk.transport.submit()
    disk.transport.notify()
    engine.wait_for(3)
    assert [kind for _, kind in engine.log] == [OUT, OUT, IN]
    engine.let_go(0)
    engine.let_go(0)
    engine.wait_for(2)
    assert engine.log[-1] == ("start", FLUSH)
    engine.let_go()
    engine.let_go()
    assert [disk.wait(head)[0] for head in heads] == [OK] * 4


def test_overlapping_writes_of_a_batch_are_serialised(make_disk: Maker, disk_path: Path) -> None:
    disk = make_disk(engine=SlowEngine)
    heads = [disk.send(OUT, 0, bytes([i]) * 512) for i in range(1, 4)]
    disk.transport.submit()
    engine = slow_engine(disk)
    for _ in heads:
        engine.wait_for(1)
        assert len(engine.waiting) == 1
        engine.let_go()
    assert [disk.wait(head)[0] for head in heads] == [OK] * 3
    assert disk_path.read_bytes()[:512] == bytes([3]) * 512


def test_reset_waits_for_what_is_executing_and_drops_it(make_disk: Maker) -> None:
    disk = make_disk(engine=SlowEngine)
    disk.send(OUT, 0, bytes(512))
    disk.send(OUT, 0, bytes(512))
    disk.send(IN, 3, size=512)
    disk.send(FLUSH)
    disk.transport.submit()
    engine = slow_engine(disk)
    engine.wait_for(2)
    resetting = in_thread(disk.device.reset)
    assert goes_on(resetting)
    engine.let_go()
    assert goes_on(resetting)
    engine.let_go()
    assert ends(resetting)
    assert disk.transport.drivers[0].collect() == []
    assert disk.transport.interrupts == []
    assert [kind for what, kind in engine.log if what == "start"] == [OUT, IN]
    disk.transport.reset()
    disk.transport.start()
    fresh = slow_engine(disk)
    head = disk.send(IN, 0, size=512)
    disk.transport.submit()
    fresh.wait_for(1)
    fresh.let_go()
    assert disk.wait(head)[0] == OK


@pytest.mark.interpreted
def test_reset_starts_nothing_that_waits(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver can queue hours of I/O in one batch; its reset takes one operation's time."""
    started, go_on = threading.Event(), threading.Event()
    reads: list[int] = []

    def slow_preadv(fd: int, views: Sequence[memoryview], offset: int) -> int:
        reads.append(offset)
        started.set()
        assert go_on.wait(patience())
        return sum(map(len, views))

    monkeypatch.setattr(os, "preadv", slow_preadv)
    for sector in range(8):
        disk.send(IN, 2 * sector, size=512)
    disk.transport.submit()
    assert started.wait(patience())
    resetting = in_thread(disk.device.reset)
    assert goes_on(resetting)
    go_on.set()
    assert ends(resetting)
    assert reads == [0]
    assert disk.transport.drivers[0].collect() == []
    assert disk.stats() == {}


def test_reset_under_load(disk: Disk) -> None:
    """With the real engine: nothing reaches the rings after reset returned."""
    for _ in range(20):
        for i in range(64):
            disk.send(IN, i, size=512)
        disk.transport.submit()
        disk.device.reset()
        used_before = disk.transport.drivers[0].collect()
        time.sleep(0.001)
        assert disk.transport.drivers[0].collect() == []
        assert len(used_before) <= 64
        disk.transport.reset()
        disk.transport.start()
