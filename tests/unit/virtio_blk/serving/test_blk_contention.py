"""A thread stops polling on a host with too few CPUs, and tries again later."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import patience

from pykvm.devices.virtio_blk import DiskOptions, EngineKind, Image, VirtioBlk, choose
from pykvm.devices.virtio_blk.serving.contention import (
    ATTEMPT_NS,
    FIRST_REST_NS,
    LAST_REST_NS,
    LOST_NS,
    WINDOW_NS,
    Contention,
)
from pykvm.host import io_uring
from pykvm.hot.word_watch import Watch
from pykvm.testing.fake_transport import FakeTransport
from pykvm.virtio.queue import COMPILED

START = 1_000_000_000_000


class Thread:
    """Looks every ``step`` nanoseconds and loses a part of that, as a polling thread would."""

    def __init__(self) -> None:
        self.contention = Contention()
        self.now = START
        self.lost = 0

    def poll(self, nanoseconds: int, share: float = 0.0, step: int = 100_000) -> int:
        """Go on for so long, losing ``share`` of the time while polling; how long it polled."""
        polled = 0
        for _ in range(nanoseconds // step):
            if not self.contention.look(self.now, self.lost):
                polled += step
                self.lost += int(step * share)
            self.now += step
        return polled


def test_a_thread_that_loses_no_time_goes_on_polling() -> None:
    thread = Thread()
    assert thread.poll(10 * WINDOW_NS) == 10 * WINDOW_NS


def test_a_thirtieth_of_lost_time_does_not_end_polling() -> None:
    thread = Thread()
    assert thread.poll(100 * WINDOW_NS, share=0.033) == 100 * WINDOW_NS


def test_one_slice_of_another_program_ends_polling_at_once() -> None:
    thread = Thread()
    thread.poll(WINDOW_NS)
    thread.lost += LOST_NS
    thread.now += LOST_NS
    assert thread.poll(FIRST_REST_NS) == 0
    assert thread.poll(FIRST_REST_NS) == FIRST_REST_NS


def test_a_successful_attempt_makes_the_next_pause_short() -> None:
    thread = Thread()
    for _ in range(20):
        thread.poll(WINDOW_NS, share=0.5)
    assert thread.poll(LAST_REST_NS, share=0.5) < LAST_REST_NS / 20
    thread.poll(LAST_REST_NS)  # until the next attempt, which finds nothing
    thread.poll(2 * ATTEMPT_NS)
    thread.lost += LOST_NS
    assert thread.poll(2 * FIRST_REST_NS) >= FIRST_REST_NS


def test_attempts_to_poll_on_a_busy_host_cost_little() -> None:
    thread = Thread()
    thread.poll(LAST_REST_NS, share=0.3)
    seconds = 20 * 1_000_000_000
    assert thread.poll(seconds, share=0.3) < seconds / 100


@given(st.lists(st.tuples(st.integers(0, 2_000_000_000), st.integers(0, 5_000_000))))
def test_polling_is_tried_again_however_time_passes(steps: list[tuple[int, int]]) -> None:
    contention = Contention()
    now, lost = START, 0
    for passed, gone in steps:
        now += passed
        lost += gone
        contention.look(now, lost)
    assert not contention.look(now + LAST_REST_NS, lost)


LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@pytest.fixture
def crowded_cpu() -> Iterator[None]:
    """This thread shares one CPU with a busy loop."""
    usual = os.sched_getaffinity(0)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, usual)
        os.sched_setaffinity(0, {min(usual)})
        loop = stack.enter_context(subprocess.Popen([sys.executable, "-c", LOOP]))
        stack.callback(loop.kill)
        yield


@pytest.mark.skipif(not COMPILED, reason="the interpreted form does not spin")
def test_time_of_other_programs_is_lost_time(crowded_cpu: None) -> None:
    words = memoryview(bytearray(2)).cast("H")
    watch = Watch(1)
    lost = 0
    end = time.monotonic() + patience()
    while lost < LOST_NS and time.monotonic() < end:
        watch.add(words, 0, 0)
        assert not watch.changes(1_000_000)
        lost += watch.lost_ns
    assert lost >= LOST_NS


class SometimesScarce(Contention):
    """Finds contention whenever a dice says so."""

    def __init__(self) -> None:
        super().__init__()
        self._dice = Random(7)

    def look(self, now_ns: int, lost_ns: int) -> bool:
        self.found = self._dice.random() < 0.5
        return self.found


class SometimesLost(Watch):
    """Loses time in every second look, whatever has changed in it."""

    def changes(self, nanoseconds: int) -> bool:
        found = super().changes(nanoseconds)
        self.looks = not getattr(self, "looks", False)
        self.lost_ns = 200_000 if self.looks else 0
        return found


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", [EngineKind.SYNC, EngineKind.IO_URING, EngineKind.THREADS])
@pytest.mark.parametrize("watch", [Watch, SometimesLost])
def test_no_request_is_forgotten_when_polling_stops_and_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: EngineKind, watch: type[Watch]
) -> None:
    if kind is EngineKind.IO_URING and (problem := io_uring.problem()):
        pytest.skip(problem)
    monkeypatch.setattr("pykvm.devices.virtio_blk.serving.poll_loop.Watch", watch)
    monkeypatch.setattr("pykvm.devices.virtio_blk.serving.event_loop.Contention", SometimesScarce)
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    image = Image(path)
    options = DiskOptions(poll_max_ns=1_000_000, num_queues=2)
    device = VirtioBlk(image, options, engine=choose(image, kind).make)
    with FakeTransport(device) as transport:
        transport.start()
        for number in range(600):
            queue = number // 3 % 2
            driver = transport.drivers[queue]
            head = driver.send([pack("<IIQ", 0, 0, 1)], [512, 1])
            assert transport.wait(head, queue) == 513
        transport.reset()
        assert not transport.broken
    device.close()
