"""The start and the end of a guest: what is told to its agent, and that nothing stays behind."""

import gc
import math
import os
import threading
import weakref

import pytest
from fake_guest import AGENT, BARE, FakeGuest
from patience import ends, goes_on, in_thread, until

import pykvm
from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.guest import session
from pykvm.guest.start import Start
from pykvm.machine.events import BlockIoError, Resume, Stop
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.run_state import RunState


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "guest"]


def test_the_end_of_the_block_closes_the_machine_and_ends_the_thread(fake) -> None:
    one = fake()
    with one.guest as guest:
        assert guest.outcome is None
        assert threads() == ["guest"]
    assert one.machine.log == ["close"]
    assert guest.outcome.kind is OutcomeKind.QUIT
    assert threads() == []
    assert session._open == set()
    guest.close()
    assert one.machine.log == ["close"]
    with pytest.raises(pykvm.GuestDied, match="the guest was closed"):
        guest.run("true")


def test_a_guest_that_nobody_has_any_more_is_closed(fake, monkeypatch) -> None:
    one = FakeGuest(monkeypatch)
    guest = weakref.ref(one.guest)
    process = one.guest.popen("sleep 9")
    del one.guest
    gc.collect()
    assert one.machine.outcome is None, "the command's user still needs it"
    del process
    gc.collect()
    assert guest() is None
    until(lambda: one.machine.log == ["close"])
    until(lambda: threads() == [])


def test_the_end_of_the_interpreter_closes_the_machine(fake) -> None:
    one = fake()
    session._close_all()
    assert one.machine.log == ["close"]
    assert threads() == []


def test_a_forked_child_leaves_the_guest_of_its_parent_alone(fake, monkeypatch) -> None:
    one = fake()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    for call in (one.guest.run, one.guest.popen):
        with pytest.raises(pykvm.UsageError, match=r"belongs to process \d+, which forked"):
            call("true")
    one.guest.close()
    session._close_all()
    assert one.machine.outcome is None
    monkeypatch.undo()
    assert one.machine.log == []


def test_a_guest_that_does_not_answer_in_time_is_closed(monkeypatch) -> None:
    with pytest.raises(pykvm.GuestTimeout, match="agent has not answered within 0 s"):
        FakeGuest(monkeypatch, silent=True, timeout=0)
    assert threads() == []


def test_a_guest_that_dies_at_its_start_says_why(monkeypatch) -> None:
    original = session.Session.start

    def start(self, *awakening: object) -> None:
        original(self, *awakening)
        self.machine.finish(Outcome.panic("Kernel panic: no init"))

    monkeypatch.setattr(session.Session, "start", start)
    with pytest.raises(pykvm.GuestDied, match="Kernel panic: no init, during the wait for"):
        FakeGuest(monkeypatch, silent=True)
    assert threads() == []


def test_a_restored_guest_is_told_the_time_and_new_random_bytes(fake, monkeypatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1234)
    one, two = fake(restored=True), fake(restored=True)
    assert one.client.woken[0] == 1234
    assert len(one.client.woken[1]) == 32
    assert one.client.woken[1] != two.client.woken[1]
    assert fake().client.woken is None


def test_a_run_can_be_repeated_with_a_time_and_the_random_numbers_of_the_snapshot(fake) -> None:
    one = fake(restored=True, entropy="same", clock=1.5)
    assert one.client.woken == (1_500_000_000, None, False)
    assert fake(restored=True, clock=0).client.woken[0] == 0


def test_a_guest_that_has_booted_gets_the_time_too(fake) -> None:
    one = fake(clock=2)
    assert one.client.woken[0] == 2_000_000_000
    assert one.machine.status is RunState.RUNNING
    assert fake(BARE, clock=2).guest.outcome is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"entropy": b"x"}, "entropy"),
        ({"entropy": None}, "entropy"),
        ({"clock": "now"}, "clock"),
        ({"clock": -1}, "clock"),
        ({"clock": True}, "clock"),
        ({"clock": math.inf}, "clock"),
        ({"clock": math.nan}, "clock"),
    ],
)
def test_a_start_refuses_what_is_no_time_and_no_entropy(options, name) -> None:
    with pytest.raises(pykvm.UsageError, match=f"^{name} cannot be "):
        Start(AGENT, **options)


def test_waiting_for_the_end(fake) -> None:
    one = fake(BARE)
    with pytest.raises(pykvm.GuestTimeout, match="the guest has not ended within 0 s"):
        one.guest.wait(timeout=0)
    outcomes = []
    thread = in_thread(lambda: outcomes.append(one.guest.wait()))
    one.machine.finish(Outcome.reset())
    assert ends(thread)
    assert outcomes == [one.guest.outcome] == [Outcome.reset()]


def test_an_orderly_power_off(fake) -> None:
    one = fake()
    assert one.guest.power_off(3) == Outcome.power_off(3)
    assert one.client.powered_off == [3]
    for wrong in (-1, 256, "3"):
        with pytest.raises(pykvm.UsageError, match=r"^status cannot be "):
            one.guest.power_off(wrong)


def test_the_limit_of_waits_can_be_set(fake) -> None:
    one = fake()
    one.guest.timeout = 0
    with pytest.raises(pykvm.GuestTimeout):
        one.guest.run("sleep 9")
    assert one.guest.timeout == 0
    with pytest.raises(pykvm.UsageError, match=r"^timeout cannot be None"):
        one.guest.timeout = None


def test_close_raises_what_the_end_of_the_machine_raised(fake) -> None:
    one = fake()

    def fail() -> None:
        raise TimeoutError("stuck")

    one.machine.closing = fail
    with pytest.raises(TimeoutError):
        one.guest.close()
    one.guest.close()


@pytest.mark.parametrize("call", ["wait", "close"])
def test_a_bug_in_pykvm_that_no_call_has_told_of_is_raised_once(fake, call) -> None:
    one = fake(BARE)
    one.machine.bug = ZeroDivisionError("a bug")
    one.machine.finish(Outcome.error("a bug"))
    until(lambda: one.guest.outcome)
    with pytest.raises(ZeroDivisionError):
        getattr(one.guest, call)()
    one.guest.close()


FAILURE = BlockIoError("virtio0", IoError("write", 8, 512, 28, ErrorAction.STOP))


def test_an_error_that_stops_the_guest_can_be_awaited(fake) -> None:
    one = fake(BARE)
    with pytest.raises(pykvm.GuestTimeout, match="no I/O error has stopped the guest within 0 s"):
        one.guest.wait_stopped(timeout=0)
    errors = []
    thread = in_thread(lambda: errors.append(one.guest.wait_stopped()))
    one.machine.listener(BlockIoError("virtio0", IoError("read", 0, 1, 5, ErrorAction.REPORT)))
    one.machine.listener(FAILURE)
    one.machine.listener(BlockIoError("virtio0", IoError("write", 9, 512, 5, ErrorAction.STOP)))
    assert goes_on(thread)
    one.machine.listener(Stop())
    assert ends(thread)
    assert errors == [FAILURE.error]
    assert one.guest.wait_stopped(timeout=0) is FAILURE.error
    one.machine.listener(Resume())
    one.machine.listener(Stop())
    with pytest.raises(pykvm.GuestTimeout):
        one.guest.wait_stopped(timeout=0)
    one.machine.finish(Outcome.reset())
    with pytest.raises(pykvm.GuestDied, match="during the wait for an I/O error"):
        one.guest.wait_stopped()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (RunState.PAUSED, r"within 0 s: the guest is paused; call resume\(\)"),
        (RunState.IO_ERROR, r"within 0 s: an I/O error has stopped the guest; call resume\(\)"),
    ],
)
def test_a_wait_that_takes_too_long_tells_that_the_guest_is_stopped(fake, state, text) -> None:
    one = fake()
    one.machine.status = state
    for call in (one.guest.run, one.guest.console.wait_for):
        with pytest.raises(pykvm.GuestTimeout, match=text):
            call("x", timeout=0)
