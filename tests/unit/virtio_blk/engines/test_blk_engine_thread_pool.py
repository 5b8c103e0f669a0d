"""The engine of several threads: their number, and a bug in one of them."""

import errno
import os
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytest
from blk_engines import wait
from blk_operations import flush, read, readable
from patience import patience

from pykvm.devices.virtio_blk import Image
from pykvm.devices.virtio_blk.engines import thread_pool
from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine
from pykvm.memory.ram import Ram


def test_threads_start_when_there_are_operations(image: Image) -> None:
    before = threading.active_count()
    engine = ThreadsEngine(image, Ram.flat(8192), workers=3)
    assert threading.active_count() == before
    for count, expected in ((1, 1), (2, 2), (1, 2), (20, 3)):
        engine.submit([read() for _ in range(count)])
        wait(engine, count)
        assert threading.active_count() == before + expected
    engine.close()
    assert threading.active_count() == before


def test_operations_run_side_by_side(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the others, so they complete only if all are in flight at once."""
    meeting = threading.Barrier(4)
    real = os.preadv

    def preadv(fd: int, views: Sequence[memoryview], offset: int) -> int:
        meeting.wait(patience())
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    engine = ThreadsEngine(image, Ram.flat(8192), workers=4)
    batch = [read() for _ in range(4)]
    engine.submit(batch)
    wait(engine, 4)
    assert [op.moved for op in batch] == [1024] * 4
    engine.close()


def in_lockstep(frame: FrameType, event: str, argument: object) -> Any:
    """A trace function: whatever the engine's threads do, each lets others go on after each step.

    They run the engine's code nearly side by side, one bytecode instruction at a time.
    """
    if frame.f_code.co_filename != thread_pool.__file__:
        return None
    frame.f_trace_opcodes = True
    time.sleep(0.0001)
    return in_lockstep


def test_no_interleaving_of_threads_loses_a_notification(image: Image) -> None:
    """A thread that sleeps until the notifier is readable gets all completions."""
    threading.settrace(in_lockstep)
    try:
        engine = ThreadsEngine(image, Ram.flat(8192), workers=3)
        for _ in range(10):
            engine.submit([read() for _ in range(3)])
            wait(engine, 3)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    engine.close()


@pytest.mark.interpreted
def test_a_stop_cancels_what_waits_for_a_thread(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = os.preadv

    def preadv(fd: int, views: Sequence[memoryview], offset: int) -> int:
        begun.set()
        assert go_on.wait(patience())
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    engine = ThreadsEngine(image, Ram.flat(8192), workers=1)
    batch = [read(), read(), flush()]
    engine.submit(batch)
    assert begun.wait(patience())
    engine.stop()
    assert not engine.completions()
    go_on.set()
    wait(engine, 3)
    assert [op.error for op in batch] == [0, errno.ECANCELED, errno.ECANCELED]
    engine.close()


@pytest.mark.interpreted
def test_a_bug_in_a_thread_belongs_to_the_owner(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(fd: int, views: Sequence[memoryview], offset: int) -> int:
        raise ZeroDivisionError

    engine = ThreadsEngine(image, Ram.flat(8192))
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", buggy)
        bad = read()
        engine.submit([bad])
        assert readable(engine.notifier, 10_000)
        with pytest.raises(ZeroDivisionError):
            engine.completions()
    assert wait(engine, 1) == [bad]
    assert bad.error == errno.EIO
    engine.submit([good := read()])
    wait(engine, 1)
    assert (good.error, good.moved) == (0, 1024)
    engine.close()


def test_an_engine_that_was_stopped_starts_no_thread(image: Image) -> None:
    before = threading.active_count()
    engine = ThreadsEngine(image, Ram.flat(8192))
    engine.stop()
    batch = [read(), flush()]
    engine.submit(batch)
    wait(engine, 2)
    assert [op.error for op in batch] == [errno.ECANCELED] * 2
    assert threading.active_count() == before
    engine.close()
