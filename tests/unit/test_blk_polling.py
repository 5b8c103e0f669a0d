"""Polling: how long a ring is watched, and that a watched ring needs no notification."""

from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import io_uring
from pykvm.devices.virtio_blk import DiskOptions, EngineKind, Image, VirtioBlk, choose
from pykvm.devices.virtio_blk.polling import FIRST_NS, AdaptivePolling
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram
from pykvm.testing.mock_driver import MockDriver
from pykvm.testing.mock_transport import MockTransport
from pykvm.virtio import spin

SECOND = 1_000_000_000


def test_watching_takes_as_long_as_would_have_spared_the_sleep() -> None:
    polling = AdaptivePolling(20_000)
    seen = []
    for sleep in (1000, 6000, 10_000, 1000, 500):
        polling.slept(sleep)
        seen.append(polling.now_ns)
    assert seen == [4000, 10_000, 20_000, 4000, 4500]


def test_a_long_sleep_ends_watching() -> None:
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
def test_watching_is_off_or_within_its_limits(most: int, sleeps: list[int]) -> None:
    polling = AdaptivePolling(most)
    for nanoseconds in sleeps:
        polling.slept(nanoseconds)
        assert polling.now_ns == 0 or min(FIRST_NS, most) <= polling.now_ns <= most


def test_a_change_is_seen_at_once() -> None:
    words = memoryview(bytearray(8)).cast("H")
    words[2] = 7
    assert spin.changes(words, 2, 6, 0)
    assert not spin.changes(words, 2, 7, 1000)


def test_signs_end_the_wait_without_being_what_was_awaited() -> None:
    ring = memoryview(bytearray(8)).cast("H")
    shared = memoryview(bytearray(8)).cast("H")
    signs = spin.Signs(shared, 1, 3)
    for place in (1, 3):
        shared[place] = 1
        assert not spin.changes(ring, 0, 0, SECOND * 3600, signs)
        shared[place] = 0
    ring[0] = 1
    assert spin.changes(ring, 0, 0, SECOND * 3600, signs)


@pytest.mark.skipif(bool(io_uring.problem()), reason=io_uring.problem() or "-")
def test_a_ring_shows_signs_of_its_completions() -> None:
    ring = io_uring.Ring(4)
    for _ in range(10):
        before = ring.arrivals()
        assert ring.shared[ring.arrivals_at] == before
        ring.prepare(0, 0, 0, 0, 0, 0, 1)
        ring.submit()
        assert ring.completed() == 1
        assert ring.shared[ring.arrivals_at] != before
        ring.take()
        assert ring.shared[ring.arrivals_at] == ring.arrivals()
        assert ring.shared[ring.summons_at] == ring.summons()
    for flag in (1 << 1, 1 << 2):  # IORING_SQ_CQ_OVERFLOW, IORING_SQ_TASKRUN
        ring.shared[ring.summons_at] |= flag
        assert ring.shared[ring.summons_at] != ring.summons(), "it was there before we looked"
        ring.shared[ring.summons_at] &= ~flag
    ring.close()


def test_a_queue_knows_what_is_waiting() -> None:
    driver = MockDriver(Ram.flat(1 << 20), size=8)
    queue = driver.device_queue()
    assert not queue.await_available(1000)
    driver.send([b"x"], [1])
    driver.publish()
    assert queue.await_available(0)
    queue.error = "broken"
    assert not queue.await_available(0)


@pytest.fixture(params=[EngineKind.SYNC, EngineKind.IO_URING, EngineKind.THREADS])
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VirtioBlk]:
    if request.param is EngineKind.IO_URING and (problem := io_uring.problem()):
        pytest.skip(problem)
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    image = Image(path)
    engine = choose(image, request.param).make
    made = VirtioBlk(image, DiskOptions(poll_max_ns=1_000_000), engine=engine)
    yield made
    made.close()


def test_a_disk_that_watches_serves_all_and_stops_at_once(device: VirtioBlk) -> None:
    with MockTransport(device) as transport:
        transport.start()
        driver = transport.drivers[0]
        for _ in range(300):
            head = driver.send([pack("<IIQ", 0, 0, 1)], [512, 1])
            assert transport.wait(head) == 513
            assert driver.response(head)[-1] == 0
        transport.reset()
        assert not transport.broken


@pytest.mark.parametrize("wrong", [-1, 1_000_001])
def test_a_limit_that_cannot_be(wrong: int) -> None:
    with pytest.raises(UsageError, match="poll-max-ns"):
        DiskOptions(poll_max_ns=wrong)
