"""Polling: its time, and that a polled ring needs no notification."""

from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import DiskOptions, EngineKind, Image, VirtioBlk, choose
from pykvm.devices.virtio_blk.serving.poll_time import FIRST_NS, AdaptivePolling
from pykvm.errors import UsageError
from pykvm.host import io_uring
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import SplitDriver

SECOND = 1_000_000_000


def test_polling_takes_the_time_that_would_have_avoided_the_last_sleep() -> None:
    polling = AdaptivePolling(20_000)
    seen = []
    for sleep in (1000, 6000, 10_000, 1000, 500):
        polling.slept(sleep)
        seen.append(polling.now_ns)
    assert seen == [4000, 10_000, 20_000, 4000, 4500]


def test_a_long_sleep_ends_polling() -> None:
    polling = AdaptivePolling(20_000)
    polling.slept(20_000)
    assert polling.now_ns == 20_000
    polling.slept(60_001)
    assert polling.now_ns == 0
    polling.slept(80_000)
    assert polling.now_ns == 4000
    polling.slept(80_001)
    assert polling.now_ns == 0


@given(st.integers(0, 1_000_000), st.lists(st.integers(0, SECOND)))
def test_the_polling_time_is_zero_or_within_its_limits(most: int, sleeps: list[int]) -> None:
    polling = AdaptivePolling(most)
    for nanoseconds in sleeps:
        polling.slept(nanoseconds)
        assert polling.now_ns == 0 or min(FIRST_NS, most) <= polling.now_ns <= most


def test_a_change_is_seen_at_once() -> None:
    watch = Watch(1)
    words = memoryview(bytearray(8)).cast("H")
    words[2] = 7
    watch.add(words, 2, 6)
    assert watch.changes(0)
    watch.add(words, 2, 7)
    assert not watch.changes(1000)


def test_any_of_the_words_ends_the_wait() -> None:
    words = [memoryview(bytearray(8)).cast("H") for _ in range(3)]
    watch = Watch(6)
    for changed in range(3):
        for place in (0, 3):
            for view in words:
                watch.add(view, 0, view[0])
                watch.add(view, 3, view[3])
            words[changed][place] += 1
            assert watch.changes(SECOND * 3600)


def test_no_words_never_change() -> None:
    watch = Watch(2)
    assert not watch.changes(1000)
    words = memoryview(bytearray(2)).cast("H")
    watch.add(words, 0, 1)
    watch.clear()
    assert not watch.changes(1000)


def test_a_word_outside_memory_is_refused() -> None:
    watch = Watch(1)
    words = memoryview(bytearray(4)).cast("H")

    def look() -> None:
        watch.add(words, 2, 0)
        watch.changes(0)

    with pytest.raises(IndexError):
        look()


@pytest.mark.skipif(bool(io_uring.problem()), reason=io_uring.problem() or "-")
def test_a_ring_is_watched_for_its_completions() -> None:
    ring = io_uring.Ring(4)
    watch = Watch(2)

    def changed() -> bool:
        ring.watch(watch)
        return watch.changes(0)

    for _ in range(10):
        assert not changed()
        ring.prepare(0, 0, 0, 0, 0, 0, 1)
        ring.submit()
        assert changed()
        assert ring.completed() == 1
        ring.take()
        assert not changed()
    for flag in (1 << 1, 1 << 2):  # IORING_SQ_CQ_OVERFLOW, IORING_SQ_TASKRUN
        ring.shared[ring.summons_at] |= flag
        assert changed(), "it was there before we looked"
        ring.shared[ring.summons_at] &= ~flag
    ring.close()


@pytest.mark.parametrize("packed", [False, True])
def test_a_queue_knows_what_is_waiting(packed: bool) -> None:
    driver = (PackedDriver if packed else SplitDriver)(Ram.flat(1 << 20), size=8)
    queue = driver.device_queue()
    watch = Watch(1)

    def seen() -> tuple[bool, bool]:
        queue.watch(watch)
        return queue.available(), watch.changes(1000)

    for _ in range(20):  # more than once around the ring
        assert seen() == (False, False)
        driver.send([b"x"], [1])
        driver.publish()
        assert seen() == (True, True)
        queue.begin_drain()
        queue.push(queue.pop(), 1)
        queue.publish()
        driver.collect()
    queue.error = "broken"
    assert seen() == (False, False)


@pytest.fixture(params=[EngineKind.SYNC, EngineKind.IO_URING, EngineKind.THREADS])
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VirtioBlk]:
    if request.param is EngineKind.IO_URING and (problem := io_uring.problem()):
        pytest.skip(problem)
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    image = Image(path)
    engine = choose(image, request.param).make
    options = DiskOptions(poll_max_ns=1_000_000, num_queues=2)
    made = VirtioBlk(image, options, engine=engine)
    yield made
    made.close()


def test_a_polling_disk_serves_every_request_and_stops_at_once(device: VirtioBlk) -> None:
    with FakeTransport(device) as transport:
        transport.start()
        for number in range(600):
            queue = number // 3 % 2  # one thread polls both queues
            driver = transport.drivers[queue]
            head = driver.send([pack("<IIQ", 0, 0, 1)], [512, 1])
            assert transport.wait(head, queue) == 513
            assert driver.response(head)[-1] == 0
        transport.reset()
        assert not transport.broken


@pytest.mark.parametrize("wrong", [-1, 1_000_001])
def test_an_impossible_limit_is_refused(wrong: int) -> None:
    with pytest.raises(UsageError, match="poll-max-ns"):
        DiskOptions(poll_max_ns=wrong)
