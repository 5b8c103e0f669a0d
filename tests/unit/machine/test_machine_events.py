"""Events: each listener gets all of them, in order, and delays no announcement."""

import errno
import threading

import pytest
from patience import PATIENCE, ends, goes_on, in_thread

from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.errors import HostError
from pykvm.machine.events import (
    MAX_BACKLOG,
    Announcer,
    BlockIoError,
    Event,
    HostShortage,
    Resume,
    Shutdown,
    Stop,
)
from pykvm.machine.outcome import Outcome


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def announcer(failures):
    announcer = Announcer(failures.append)
    yield announcer
    announcer.close()


def io_error(action: ErrorAction) -> BlockIoError:
    return BlockIoError("virtio0", IoError("write", 8, 4096, errno.ENOSPC, action))


def test_every_listener_gets_all_events_in_order(announcer):
    first: list[Event] = []
    second: list[Event] = []
    announcer.announce(Stop())  # without a listener
    announcer.listen(first.append)
    announcer.listen(second.append)
    sent = [Stop(), Resume(), io_error(ErrorAction.STOP), Stop()]
    for event in sent:
        announcer.announce(event)
    announcer.close()
    announcer.close()
    assert first == second == sent


def test_times_do_not_go_back(announcer):
    heard: list[Event] = []
    announcer.listen(heard.append)
    for _ in range(3):
        announcer.announce(Stop())
    announcer.close()
    times = [event.time_ns for event in heard]
    assert times == sorted(times)


def test_a_removed_listener_has_got_all_earlier_events_and_no_later_one(announcer):
    heard: list[Event] = []
    forget = announcer.listen(heard.append)
    sent = [Stop() for _ in range(50)]
    for event in sent:
        announcer.announce(event)
    forget()
    assert heard == sent
    announcer.announce(Resume())
    announcer.close()
    forget()
    assert heard == sent


def test_shutdown_is_the_last_event(announcer):
    heard: list[Event] = []
    announcer.listen(heard.append)
    end = Shutdown(Outcome.quit())
    for event in (end, Stop(), end):
        announcer.announce(event)
    announcer.close()
    assert heard == [end]


def test_a_listener_may_remove_itself_and_close_the_announcer(announcer):
    done = threading.Event()

    def listener(event: Event) -> None:
        forget()
        announcer.close()
        done.set()

    forget = announcer.listen(listener)
    announcer.announce(Stop())
    assert done.wait(PATIENCE)


def test_an_exception_in_a_listener_is_reported_and_delays_no_event(announcer, failures):
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    announcer.listen(broken)
    announcer.listen(heard.append)
    announcer.announce(Stop())
    announcer.announce(Resume())
    announcer.close()
    assert len(heard) == 2
    assert [type(error) for error in failures] == [ZeroDivisionError] * 2


def test_a_guest_cannot_fill_the_memory_with_errors(announcer):
    """A guest cannot cause endless errors that stop it, so none of these is dropped."""
    free, heard = threading.Event(), []

    def slow(event: Event) -> None:
        free.wait(PATIENCE)
        heard.append(event)

    announcer.listen(slow)
    for _ in range(3 * MAX_BACKLOG):
        announcer.announce(io_error(ErrorAction.REPORT))
        announcer.announce(HostShortage("virtio0", "too many open files"))
    stopping = io_error(ErrorAction.STOP)
    announcer.announce(stopping)
    announcer.announce(Stop())
    free.set()
    announcer.close()
    assert MAX_BACKLOG <= len(heard) <= MAX_BACKLOG + 3
    assert heard[-2] == stopping
    assert isinstance(heard[-1], Stop)


def test_a_listener_given_twice_gets_events_twice_and_is_removed_once(announcer):
    heard: list[Event] = []
    listener = heard.append
    forget = announcer.listen(listener)
    again = announcer.listen(listener)
    announcer.announce(Stop())
    forget()
    forget()
    announcer.announce(Stop())
    announcer.flush()
    assert len(heard) == 3
    again()
    announcer.announce(Stop())
    announcer.close()
    assert len(heard) == 3


def test_no_caller_waits_for_a_thread_that_a_bug_has_ended(monkeypatch):
    def buggy(error: BaseException) -> None:
        raise error

    def listener(event: Event) -> None:
        held.wait(PATIENCE)
        raise ZeroDivisionError

    bugs: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", bugs.append)
    held = threading.Event()
    announcer = Announcer(buggy)
    announcer.listen(listener)
    announcer.announce(Stop())
    waiting = in_thread(announcer.flush)
    assert goes_on(waiting)
    held.set()
    assert ends(waiting)
    assert ends(in_thread(announcer.flush))
    assert ends(in_thread(announcer.close))
    assert bugs[0].exc_type is ZeroDivisionError


def test_after_the_end_no_event_is_delivered(announcer):
    announcer.close()
    heard: list[Event] = []
    forget = announcer.listen(heard.append)
    announcer.announce(Stop())
    forget()
    assert heard == []


def test_the_repr_of_an_event_has_its_fields() -> None:
    error = IoError("write", 8, 512, errno.ENOSPC, ErrorAction.STOP)
    event = BlockIoError("virtio0", error)
    fields = f"time_ns={event.time_ns}, device='virtio0', error={error!r}"
    assert repr(event) == f"BlockIoError({fields})"
    assert repr(Stop()).startswith("Stop(time_ns=")
    assert "POWER_OFF" in repr(Shutdown(Outcome.power_off(3)))


def test_without_a_thread_no_listener_is_added(announcer, monkeypatch):
    """Else an error that stops the guest would wait for a listener that never gets it."""

    def none_left(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(HostError, match="no thread for telling of events"):
            announcer.listen(lambda event: None)
    assert not announcer.heard
