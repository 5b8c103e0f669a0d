"""Machines that stand still for a snapshot or a reset, and what they go back to."""

import pytest
from control_rig import Rig
from patience import ends, in_thread, until

from pykvm.errors import UsageError
from pykvm.machine.events import Resume, Stop
from pykvm.machine.run_state import RunState


def test_a_machine_stands_still_without_an_event(rig):
    with rig.control.still(1):
        assert rig.log == ["ask", "ask", "disk pause"]
        assert rig.control.state is RunState.RUNNING
        assert not rig.control.unless_busy(lambda: True)
        rig.log.clear()
    assert rig.log == ["disk resume", "go", "go"]
    assert rig.pauses == [0, 0]
    assert rig.control.unless_busy(lambda: True)
    assert not rig.control.unless_busy(lambda: False)


@pytest.mark.parametrize("stop", ["pause", "fail"])
def test_a_stopped_machine_stands_still_anyway(rig, stop):
    if stop == "pause":
        rig.control.pause(1)
    else:
        rig.fail()
        until(lambda: rig.control.state is RunState.IO_ERROR)
    state = rig.control.state
    rig.log.clear()
    with rig.control.still(1):
        pass
    assert rig.log == []
    assert rig.control.state is state
    assert not rig.control.unless_busy(lambda: True)


def test_a_busy_vcpu_keeps_a_machine_from_standing_still(rig):
    rig.vcpus[1].idle.clear()
    with pytest.raises(TimeoutError), rig.control.still(0.01):
        pytest.fail("it does not stand still")
    assert rig.log == ["ask", "ask", "go", "go"]
    assert rig.control.undisturbed


def test_a_disk_that_is_busy_for_long_keeps_a_machine_from_standing_still(rig):
    rig.disk.quiet = False
    with pytest.raises(TimeoutError, match="a disk is busy"), rig.control.still(0.01):
        pytest.fail("it does not stand still")
    assert rig.log[-3:] == ["disk resume", "go", "go"]
    assert rig.control.undisturbed


def test_a_closed_machine_does_not_stand_still(rig):
    rig.control.close()
    for context in (lambda: rig.control.still(1), rig.control.steady):
        with pytest.raises(UsageError, match="this machine is closed"), context():
            pytest.fail("it is closed")
    assert rig.pauses == [0, 0]


@pytest.mark.parametrize("context", ["still", "steady"])
def test_a_machine_closes_when_a_different_thread_needs_it_no_more(rig, context):
    with rig.control.still(1) if context == "still" else rig.control.steady():
        closing = in_thread(rig.control.close)
        until(lambda: rig.control._closed)
        assert closing.is_alive()
    assert ends(closing)


def test_a_disk_that_fails_while_the_machine_stands_still_is_not_resumed(rig):
    """Its requests wait for the user, and the stop follows."""
    rig.disk.in_pause = rig.fail
    with rig.control.still(1):
        assert rig.control.failed
    until(lambda: rig.control.state is RunState.IO_ERROR)
    assert "disk resume" not in rig.log
    assert rig.pauses == [1, 1]


def test_a_machine_that_is_put_back_to_an_error_stops_there(rig):
    with rig.control.still(1):
        rig.control.put_back(True)
    assert rig.control.state is RunState.IO_ERROR
    assert rig.pauses == [1, 1]
    assert rig.log == ["ask", "ask", "disk pause", "ask", "ask", Stop, "go", "go"]
    rig.control.resume()
    assert rig.pauses == [0, 0]
    assert rig.log[-4:] == [Resume, "disk resume", "go", "go"]


def test_a_machine_that_is_put_back_before_an_error_forgets_it(rig):
    rig.fail()
    until(lambda: rig.control.state is RunState.IO_ERROR)
    with rig.control.still(1):
        rig.control.put_back(False)
    assert not rig.control.failed
    rig.control.resume()
    assert rig.control.state is RunState.RUNNING
    assert rig.pauses == [0, 0]


def test_a_stop_for_an_error_that_has_not_happened_is_not_carried_out():
    rig = Rig()
    rig.fail()
    with rig.control.still(1):
        rig.control.put_back(False)
    rig.control.start()
    rig.settle()
    assert rig.control.state is RunState.RUNNING
    assert rig.pauses == [0, 0]


@pytest.mark.parametrize("failed", [False, True])
def test_a_machine_that_is_put_back_while_it_stops_is_asked_once(failed):
    """A vCPU that is asked twice and resumed once would never run again."""
    rig = Rig()
    rig.vcpus[1].idle.clear()
    rig.control._stop(RunState.IO_ERROR, 0)
    rig.vcpus[1].idle.set()
    with rig.control.still(1):
        rig.control.put_back(failed)
    assert rig.pauses == ([1, 1] if failed else [0, 0])
    assert rig.control.state is (RunState.IO_ERROR if failed else RunState.RUNNING)
    rig.control.resume()
    assert rig.pauses == [0, 0]
    assert rig.control.undisturbed


@pytest.mark.parametrize("paused", [False, True])
def test_a_paused_machine_that_is_put_back_stays_paused(rig, paused):
    rig.control.pause(1)
    with rig.control.still(1):
        rig.control.put_back(paused)
    assert rig.control.state is RunState.PAUSED
    assert rig.pauses == [1, 1]
    assert rig.count(Stop) == 1


@pytest.mark.parametrize("failed", [False, True])
def test_the_disks_of_a_restored_machine_work_from_the_start_unless_it_is_stopped(failed):
    rig = Rig()
    rig.control.put_back(failed)
    rig.control.wake_disks()
    assert rig.count("disk resume") == (0 if failed else 1)
    assert (rig.control.state is RunState.IO_ERROR) == failed
    rig.control.start()
    rig.settle()
