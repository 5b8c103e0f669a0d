"""The end of a run: any thread sets it at any moment, and the first outcome counts."""

import os
import signal
import threading
import time

import pytest
from patience import PATIENCE

from pykvm.machine.end import EndOfRun
from pykvm.machine.outcome import Outcome


def test_the_first_outcome_counts():
    end = EndOfRun()
    assert not end
    assert not end.wait(0)
    end.set(Outcome.reset("first"))
    end.set(Outcome.quit())
    assert end
    assert end.wait(0)
    assert end.wait(PATIENCE)
    assert end.outcome == Outcome.reset("first")


def test_a_wait_without_an_end_lasts_as_long_as_asked():
    end = EndOfRun()
    start = time.monotonic()
    assert not end.wait(0.05)
    assert time.monotonic() - start >= 0.05


def test_a_second_thread_wakes_the_waiting_one():
    end = EndOfRun()
    timer = threading.Timer(0.02, end.set, [Outcome.quit()])
    timer.start()
    start = time.monotonic()
    assert end.wait(PATIENCE)
    assert time.monotonic() - start < PATIENCE / 2
    timer.join()


@pytest.fixture
def on_alarm():
    """Return a function that sets the handler of SIGALRM."""
    before = signal.getsignal(signal.SIGALRM)
    yield lambda call: signal.signal(signal.SIGALRM, lambda number, frame: call())
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_ends_the_wait_that_it_interrupts(on_alarm):
    end = EndOfRun()
    on_alarm(lambda: end.set(Outcome.signalled(signal.SIGALRM)))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    start = time.monotonic()
    assert end.wait(PATIENCE)
    assert time.monotonic() - start < PATIENCE / 2


def test_a_signal_may_come_at_any_moment(on_alarm):
    """Handlers that set the end while the main thread waits, sets, and leaves waiting."""
    end = EndOfRun()
    on_alarm(lambda: end.set(Outcome.quit()))
    main = threading.get_ident()
    done = threading.Event()

    def disturb() -> None:
        while not done.is_set():
            signal.pthread_kill(main, signal.SIGALRM)
            os.sched_yield()

    thread = threading.Thread(target=disturb)
    thread.start()
    deadline = time.monotonic() + 0.3
    try:
        while time.monotonic() < deadline:
            end = EndOfRun()
            for _ in range(20):
                end.wait(0.0001)
            end.set(Outcome.reset())
            assert end.wait(PATIENCE)
    finally:
        done.set()
        thread.join()
