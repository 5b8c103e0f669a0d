"""Stopping and resuming, with fake vCPUs and disks: the order, and every overlap."""

import threading

import pytest
from control_rig import Rig
from patience import PATIENCE, ends, goes_on, in_thread, until

from pykvm.machine.events import BlockIoError, Resume, Stop
from pykvm.machine.run_state import RunState

# -- the order ---------------------------------------------------------------


def test_vcpus_stop_before_disks_and_resume_after_them(rig):
    rig.control.pause(1)
    assert rig.control.state is RunState.PAUSED
    assert rig.log == ["ask", "ask", "disk pause", Stop]
    rig.log.clear()
    rig.control.resume()
    assert rig.control.state is RunState.RUNNING
    assert rig.control.resumes == 1
    assert rig.log == [Resume, "disk resume", "go", "go"]


def test_a_repeated_pause_or_resume_is_harmless(rig):
    for _ in range(2):
        rig.control.pause(1)
    assert rig.count(Stop) == 1
    for _ in range(2):
        rig.control.resume()
    assert rig.count(Resume) == 1
    assert rig.pauses == [0, 0]


def test_every_vcpu_is_asked_before_any_is_awaited(rig):
    """Else the rest would run on while one vCPU is busy."""
    rig.vcpus[0].idle.clear()
    with pytest.raises(TimeoutError):
        rig.control.pause(0.01)
    assert rig.log == ["ask", "ask", "go", "go"]
    assert rig.control.state is RunState.RUNNING
    assert rig.control.undisturbed


def test_requests_are_carried_out_in_order(rig):
    rig.control.request_pause()
    rig.control.request_resume()
    rig.control.request_pause()
    until(lambda: rig.count(Stop) == 2)
    assert rig.control.state is RunState.PAUSED
    assert rig.count(Resume) == 1


def test_requests_wait_for_the_start():
    rig = Rig()
    rig.fail()
    assert rig.log == [BlockIoError]
    rig.control.start()
    until(lambda: rig.control.state is RunState.IO_ERROR)
    rig.control.close()


def test_close_without_a_start():
    rig = Rig()
    rig.control.close()
    rig.control.close()


# -- I/O errors ----------------------------------------------------------------


def test_an_error_stops_the_guest(rig):
    rig.fail()
    until(lambda: rig.control.state is RunState.IO_ERROR)
    assert rig.log == [BlockIoError, "ask", "ask", "disk pause", Stop]


def test_several_errors_cause_one_stop(rig):
    for _ in range(5):
        rig.fail()
    until(lambda: rig.control.state is RunState.IO_ERROR)
    rig.settle()
    assert rig.count(Stop) == 1
    rig.control.resume()
    assert rig.control.state is RunState.RUNNING
    assert rig.pauses == [0, 0]


def test_an_error_right_after_the_resume_stops_again(rig):
    """The disk fails again before resume() resumes the vCPUs."""
    failures = iter(range(3))
    rig.disk.in_resume = lambda: rig.fail() if next(failures, None) is not None else None
    rig.fail()
    for round_ in range(1, 5):
        until(lambda round_=round_: rig.count(Stop) == round_)
        assert rig.control.state is RunState.IO_ERROR
        rig.control.resume()
    rig.settle()
    assert rig.control.state is RunState.RUNNING
    assert (rig.count(Stop), rig.count(Resume)) == (4, 4)
    assert rig.pauses == [0, 0]


def test_an_error_while_the_user_has_paused_changes_nothing(rig):
    rig.control.pause(1)
    rig.fail()
    rig.settle()
    assert rig.control.state is RunState.PAUSED
    assert rig.count(Stop) == 1
    rig.control.resume()
    rig.settle()
    assert rig.control.state is RunState.RUNNING


def test_a_resume_answers_an_earlier_error():
    """The order to stop is carried out late, after the resume has answered its error."""
    rig = Rig()
    rig.disk.in_pause = rig.fail  # an operation in flight fails
    rig.control.pause(1)
    rig.control.resume()
    rig.control.start()
    rig.settle()
    assert rig.control.state is RunState.RUNNING
    assert rig.count(Stop) == 1
    assert rig.pauses == [0, 0]


def test_a_pause_while_stopped_by_an_error_keeps_the_reason(rig):
    rig.fail()
    until(lambda: rig.control.state is RunState.IO_ERROR)
    rig.control.pause(1)
    assert rig.control.state is RunState.IO_ERROR
    assert rig.count(Stop) == 1


def test_an_error_while_a_vcpu_is_busy_stops_it_as_soon_as_it_is_idle(rig):
    rig.vcpus[1].idle.clear()
    rig.fail()
    until(lambda: rig.pauses == [1, 1])
    assert rig.control.state is RunState.RUNNING
    assert not rig.control.undisturbed
    rig.vcpus[1].idle.set()
    until(lambda: rig.control.state is RunState.IO_ERROR)
    assert rig.pauses == [1, 1]


def test_a_resume_while_a_vcpu_is_busy_cancels_the_stop(rig):
    """A listener that got the error waits for STOP and RESUME, so both come."""
    rig.vcpus[1].idle.clear()
    rig.fail()
    until(lambda: rig.pauses == [1, 1])
    rig.control.resume()
    rig.vcpus[1].idle.set()
    rig.settle()
    assert rig.control.state is RunState.RUNNING
    assert rig.pauses == [0, 0]
    assert rig.log == [BlockIoError, "ask", "ask", Stop, Resume, "disk resume", "go", "go"]


def test_a_resume_before_the_stop_begins_cancels_it():
    """``cont`` answers the event before the control thread begins the stop."""
    rig = Rig()
    rig.fail()
    assert not rig.control.undisturbed
    rig.control.resume()
    rig.control.start()
    rig.settle()
    assert rig.control.state is RunState.RUNNING
    assert rig.control.undisturbed
    assert rig.log == [BlockIoError, Stop, Resume, "disk resume"]


def test_a_resume_by_a_listener_answers_the_error():
    """Even if the answer is fast, no stop for the error follows the resume."""
    rig = Rig()
    rig.control.pause(1)
    rig.control.resume()
    rig.log.clear()
    answer = threading.Thread(target=rig.control.resume)

    def hear() -> None:
        answer.start()
        answer.join(0.05)  # time enough for a resume that need not wait

    rig.on_failure = hear
    rig.fail()
    answer.join(PATIENCE)
    rig.control.start()
    rig.settle()
    assert rig.log == [BlockIoError, Stop, Resume, "disk resume"]
    assert rig.control.state is RunState.RUNNING


def test_a_pause_that_fails_leaves_the_stop_for_an_error_in_place(rig):
    rig.vcpus[1].idle.clear()
    rig.fail()
    until(lambda: rig.pauses == [1, 1])
    with pytest.raises(TimeoutError):
        rig.control.pause(0.01)
    assert rig.pauses == [1, 1]
    rig.vcpus[1].idle.set()
    until(lambda: rig.control.state is RunState.IO_ERROR)


# -- the end of the run -----------------------------------------------------------


def test_after_the_end_nothing_is_stopped_or_resumed(rig):
    rig.over = True
    rig.control.pause(1)
    rig.control.resume()
    rig.fail()
    rig.settle()
    assert rig.log == [BlockIoError]


def test_an_end_during_a_pause_is_not_announced_as_a_stop(rig):
    def end() -> None:
        rig.over = True

    rig.disk.in_pause = end
    rig.control.pause(1)
    assert Stop not in rig.log


def test_the_end_does_not_wait_for_a_disk(rig):
    """Its operations may take any time. Closing the devices cancels them."""
    rig.disk.quiet = False
    pausing = threading.Thread(target=rig.control.pause, args=[PATIENCE])
    pausing.start()
    until(lambda: "disk pause" in rig.log)
    rig.over = True
    pausing.join(PATIENCE)
    assert not pausing.is_alive()
    assert Stop not in rig.log


def test_close_does_not_wait_for_a_disk(rig):
    rig.disk.quiet = False
    rig.fail()
    until(lambda: "disk pause" in rig.log)
    rig.control.close()
    assert Stop not in rig.log


def test_an_end_during_a_stop_that_waits_for_a_vcpu(rig):
    rig.vcpus[0].idle.clear()
    rig.fail()
    until(lambda: rig.pauses == [1, 1])
    rig.over = True
    rig.control.close()
    assert Stop not in rig.log


def test_a_bug_is_reported_and_ends_the_thread():
    rig = Rig()

    def bug() -> None:
        raise ZeroDivisionError

    rig.disk.in_pause = bug
    rig.control.start()
    rig.fail()
    until(lambda: rig.errors)
    rig.control.close()
    assert isinstance(rig.errors[0], ZeroDivisionError)


def test_many_threads_at_once(rig):
    """In any order, each stop has its resume, and no request is left."""

    def hammer(call) -> None:
        for _ in range(200):
            call()

    calls = [lambda: rig.control.pause(PATIENCE), rig.control.resume, rig.fail]
    calls += [rig.control.request_pause, rig.control.request_resume]
    threads = [threading.Thread(target=hammer, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    rig.settle()
    rig.control.resume()
    assert rig.control.state is RunState.RUNNING
    assert rig.pauses == [0, 0]
    events = [item for item in rig.log if item in (Stop, Resume)]
    assert events == [Stop, Resume] * (len(events) // 2)


# -- a disk that has halted, and not yet announced its error ---------------------------------


def test_a_resume_waits_until_a_halted_disk_has_announced_its_error(rig):
    """So the resume answers the error, and the guest does not stop for it again."""
    rig.control.pause(1)
    rig.log.clear()
    halted, tell = threading.Event(), threading.Event()

    def disk() -> None:
        with rig.control.telling:
            rig.log.append("halted")
            halted.set()
            assert tell.wait(PATIENCE)
            rig.fail()

    thread = in_thread(disk)
    assert halted.wait(PATIENCE)
    resuming = in_thread(rig.control.resume)
    assert goes_on(resuming)
    tell.set()
    assert ends(thread)
    assert ends(resuming)
    rig.settle()
    assert rig.log == ["halted", BlockIoError, Resume, "disk resume", "go", "go"]
    assert rig.control.state is RunState.RUNNING


def test_a_disk_that_halts_during_a_resume_stops_the_guest_again(rig):
    """It halts after every disk has resumed, so this is a new stop."""
    rig.control.pause(1)
    rig.log.clear()

    def disk() -> None:
        with rig.control.telling:
            rig.log.append("halted")
            rig.fail()

    threads: list[threading.Thread] = []
    rig.disk.in_resume = lambda: threads.append(in_thread(disk))
    rig.control.resume()
    assert ends(threads[0])
    until(lambda: rig.control.state is RunState.IO_ERROR)
    assert rig.log.index("halted") > rig.log.index("disk resume")
