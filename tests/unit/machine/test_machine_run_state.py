"""Stopping and resuming, with fake vCPUs and disks: the order, and every overlap."""

import threading
from dataclasses import dataclass, field

import pytest
from patience import PATIENCE, ends, goes_on, in_thread, until

from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.machine.events import BlockIoError, Event, Resume, Stop
from pykvm.machine.run_state import RunControl, RunState

FAILURE = BlockIoError("virtio0", IoError("write", 0, 512, 5, ErrorAction.STOP))


@dataclass
class FakeVcpu:
    """A vCPU that pauses when asked, unless it is ``busy``. Notes calls in ``log``."""

    log: list[object]
    pauses: int = 0
    idle: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def request_pause(self) -> None:
        self.log.append("ask")
        self.pauses += 1

    def wait_paused(self, timeout: float) -> bool:
        return self.idle.wait(timeout)

    def resume(self) -> None:
        assert self.pauses > 0
        self.pauses -= 1
        self.log.append("go")


@dataclass
class FakeDisk:
    """A disk that notes calls in ``log``, and calls ``in_pause`` and ``in_resume`` within them."""

    log: list[object]
    in_pause: object = None
    in_resume: object = None
    quiet: bool = True

    def pause(self, timeout: float) -> bool:
        self.log.append("disk pause")
        if self.in_pause:
            self.in_pause()
        return self.quiet

    def resume(self) -> None:
        self.log.append("disk resume")
        if self.in_resume:
            self.in_resume()


class Rig:
    """A control with two vCPUs and a disk; ``log`` has calls and events in their order.

    ``on_failure`` is called when it has been announced that the disk failed.
    """

    def __init__(self) -> None:
        self.on_failure = lambda: None
        self.log: list[object] = []
        self.over = False
        self.errors: list[BaseException] = []
        self.vcpus = [FakeVcpu(self.log), FakeVcpu(self.log)]
        self.disk = FakeDisk(self.log)
        self.control = RunControl(
            self.vcpus, [self.disk], self.announce, lambda: self.over, self.errors.append
        )

    def announce(self, event: Event) -> None:
        self.log.append(type(event))
        if event is FAILURE:
            self.on_failure()

    def count(self, item: object) -> int:
        return self.log.count(item)

    @property
    def pauses(self) -> list[int]:
        return [vcpu.pauses for vcpu in self.vcpus]

    def fail(self) -> None:
        """Report an error, as a disk's thread does."""
        self.control.io_error(FAILURE)

    def settle(self) -> None:
        """End the control thread once it has carried out all requests."""
        self.control.close()


@pytest.fixture
def rig():
    rig = Rig()
    rig.control.start()
    yield rig
    for vcpu in rig.vcpus:
        vcpu.idle.set()
    rig.control.close()
    assert not rig.errors


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


# -- standing still ------------------------------------------------------------


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
