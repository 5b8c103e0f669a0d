"""Stopping a real machine: the guest notices nothing, and the host sees every stop."""

import threading
import time

import pytest
from bare_events import Log, guest, no_threads_left, port_exits
from patience import PATIENCE, until

from pykvm.machine import Machine, RunState
from pykvm.machine.events import Event, GuestPanicked, Resume, Shutdown, Stop
from pykvm.machine.outcome import Outcome, OutcomeKind

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True)
def _no_threads_left():
    with no_threads_left():
        yield


# -- by the user --------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 3])
def test_a_guest_that_is_stopped_executes_nothing(cpus: int):
    with Machine(guest("echo", cpus=cpus)) as machine:  # it polls the UART without end
        log = Log(machine)
        assert machine.status is RunState.PRELAUNCH
        machine.start()
        assert machine.status is RunState.RUNNING
        until(lambda: port_exits(machine), "the first exit")
        for _ in range(2):
            machine.pause()
            machine.pause()
            assert machine.status is RunState.PAUSED
            before = machine.statistics()["exits"]
            time.sleep(0.05)
            assert machine.statistics()["exits"] == before
            machine.resume()
            machine.resume()
            assert machine.status is RunState.RUNNING
            count = port_exits(machine)
            until(lambda count=count: port_exits(machine) > count, "an exit after the resume")
        machine.board.console.feed(b"\x04")
        assert machine.wait(PATIENCE).status == 0
        assert machine.status is RunState.SHUTDOWN
    assert log.kinds == [Stop, Resume, Stop, Resume, Shutdown]


def test_paused_and_pause_nest():
    with Machine(guest("echo")) as machine:
        machine.start()
        until(lambda: port_exits(machine), "the first exit")
        with machine.paused():
            machine.pause()
            machine.resume()
            assert machine.status is RunState.RUNNING
            before = port_exits(machine)
            time.sleep(0.02)
            assert port_exits(machine) == before
            machine.pause()
        before = port_exits(machine)
        time.sleep(0.02)
        assert port_exits(machine) == before
        machine.resume()
        until(lambda: port_exits(machine) > before, "an exit after both")


def test_stopped_before_the_start():
    with Machine(guest("hello 3")) as machine:
        log = Log(machine)
        machine.pause()
        assert machine.status is RunState.PRELAUNCH
        machine.start()
        assert machine.status is RunState.PAUSED
        time.sleep(0.02)
        assert machine.console_output == b""
        machine.resume()
        assert machine.wait(PATIENCE).status == 3
    assert log.kinds == [Stop, Resume, Shutdown]


def test_after_the_end_there_is_nothing_to_stop():
    with Machine(guest("hello 3")) as machine:
        log = Log(machine)
        machine.run(PATIENCE)
        machine.pause()
        machine.resume()
        assert machine.status is RunState.SHUTDOWN
    machine.pause()
    machine.resume()
    assert log.kinds == [Shutdown]
    assert log.events[0].outcome == Outcome.power_off(3)


def test_ended_and_closed_while_stopped():
    for end in (True, False):
        with Machine(guest("echo")) as machine:
            log = Log(machine)
            machine.start()
            machine.pause()
            if end:
                machine.finish(Outcome.quit())
                assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT
        assert log.kinds == [Stop, Shutdown] if end else [Stop]


def test_a_stopped_guest_is_not_taken_for_one_that_has_halted():
    """It is halted with interrupts off, which ends a guest, but only one that runs."""
    with Machine(guest("halt")) as machine:
        machine.start()
        with machine.paused():
            pass
        time.sleep(0.05)  # it may have halted or not
        machine.pause()
        assert machine.wait(1.0).kind is OutcomeKind.TIMEOUT


def test_timeouts_go_on_while_stopped():
    with Machine(guest("spin")) as machine:
        machine.start()
        machine.pause()
        assert machine.wait(0.1).kind is OutcomeKind.TIMEOUT


@pytest.mark.parametrize(
    ("words", "state", "kinds"),
    [
        ("panic", RunState.GUEST_PANICKED, [GuestPanicked, Shutdown]),
        ("triple", RunState.SHUTDOWN, [Shutdown]),
        ("reset", RunState.SHUTDOWN, [Shutdown]),
    ],
)
def test_each_end_has_its_events(words: str, state: RunState, kinds: list[type[Event]]):
    with Machine(guest(words)) as machine:
        log = Log(machine)
        outcome = machine.run(PATIENCE)
        assert machine.status is state
    assert log.kinds == kinds
    assert log.events[-1].outcome == outcome


def test_a_bug_is_an_internal_error():
    def sink(data: bytes) -> None:
        raise ZeroDivisionError

    with Machine(guest("hello 3"), console=sink) as machine:
        with pytest.raises(ZeroDivisionError):
            machine.run(PATIENCE)
        assert machine.status is RunState.INTERNAL_ERROR


def test_a_listener_that_raises_ends_the_run():
    def listener(event: Event) -> None:
        raise ZeroDivisionError

    with Machine(guest("spin")) as machine:
        machine.listen(listener)
        machine.start()
        machine.pause()
        with pytest.raises(ZeroDivisionError):
            machine.wait(PATIENCE)


# -- a vCPU that is busy -----------------------------------------------------------


def test_a_sink_that_blocks_holds_up_a_pause_and_nothing_else():
    busy, free = threading.Event(), threading.Event()

    def sink(data: bytes) -> None:
        busy.set()
        free.wait(PATIENCE)

    with Machine(guest("hello 3"), console=sink) as machine:
        log = Log(machine)
        machine.start()
        assert busy.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            machine.pause(0.05)
        assert machine.status is RunState.RUNNING
        machine.request_pause()
        until(lambda: not machine._control.undisturbed, "the request is not carried out")
        free.set()
        log.wait_for(Stop)
        assert machine.status is RunState.PAUSED
        machine.request_resume()
        assert machine.wait(PATIENCE).status == 3
    assert log.kinds == [Stop, Resume, Shutdown]


def test_a_vcpu_cannot_pause_its_own_machine():
    def sink(data: bytes) -> None:
        machine.pause()

    with (
        Machine(guest("hello 3"), console=sink) as machine,
        pytest.raises(RuntimeError, match="vCPU"),
    ):
        machine.run(PATIENCE)
