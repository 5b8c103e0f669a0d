"""Stopping a real machine: what the guest notices (nothing), and what the host does (all)."""

import errno
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pykvm.devices.virtio_blk import ErrorAction, ErrorPolicy
from pykvm.devices.virtio_blk.faults import Fault, FaultPlan
from pykvm.machine import DiskConfig, IoStatus, Machine, MachineConfig, RunState
from pykvm.machine.events import BlockIoError, Event, GuestPanicked, Resume, Shutdown, Stop
from pykvm.platform.outcome import Outcome, OutcomeKind
from pykvm.testing.bare import BlockDriver, BlockRequest, Results, Script, build_bare_guest
from pykvm.testing.bare.layout import MEMORY_NEEDED

pytestmark = pytest.mark.kvm

PATIENCE = 20.0
OK, IOERR = 0, 1


@pytest.fixture(autouse=True)
def _no_threads_left():
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return DiskConfig(path)


def guest(words: str, **more: object) -> MachineConfig:
    return MachineConfig(
        kernel=build_bare_guest(), append=words, **{"memory": MEMORY_NEEDED, **more}
    )


def until(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


class Log:
    """The events of a machine; the kinds of them are ``kinds``."""

    def __init__(self, machine: Machine) -> None:
        self.events: list[Event] = []
        machine.listen(self.events.append)

    @property
    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]

    def wait_for(self, kind: type[Event], count: int = 1) -> None:
        until(lambda: self.kinds.count(kind) >= count, f"{kind.__name__} {count}")


def port_exits(machine: Machine) -> int:
    return machine.statistics()["exits"].get("IoExit", 0)


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


def test_to_look_at_a_guest_and_to_stop_it_nest():
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
def test_ends_are_told(words: str, state: RunState, kinds: list[type[Event]]):
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


# -- by errors ----------------------------------------------------------------------


def write_run(disk: DiskConfig, requests: list[BlockRequest]) -> tuple[Machine, object]:
    """A machine whose guest posts ``requests`` at once and waits for all."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(requests)
    script.exit(0)
    return Machine(guest("script", initrd=script.encode(), disks=[disk])), batch


def test_an_error_stops_the_guest_and_a_resume_tries_again(disk: DiskConfig):
    plan = FaultPlan()
    rule = plan.add(Fault(operation="write", sectors=9, errno="ENOSPC"))
    disk = replace(disk, faults=plan)
    writes = [BlockRequest.write(8 * i, bytes([i + 1]) * 4096) for i in range(4)]
    machine, batch = write_run(disk, writes)
    with machine:
        log = Log(machine)
        machine.start()
        for round_ in range(1, 4):
            log.wait_for(Stop, round_)
            assert machine.status is RunState.IO_ERROR
            assert machine.disks[0].io_status is IoStatus.NOSPACE
            if round_ == 3:
                plan.remove(rule)
            machine.resume()
        assert machine.wait(PATIENCE).status == 0
        outcomes = batch.outcomes(Results(machine.ram.read))
        counts = machine.statistics()["disks"][0]
        (one,) = machine.disks
        assert one.name == "virtio0"
        assert one.io_status is IoStatus.OK
    assert [outcome.status for outcome in outcomes] == [OK] * 4
    assert disk.path.read_bytes()[: 4 * 4096] == b"".join(bytes([i + 1]) * 4096 for i in range(4))
    assert counts["wr_operations"] == 4
    assert counts["failed_wr_operations"] == 0
    assert log.kinds == [BlockIoError, Stop, Resume] * 3 + [Shutdown]
    for event in log.events[::3][:3]:
        assert event.device == "virtio0"
        error = event.error
        assert (error.operation, error.sector, error.length) == ("write", 8, 4096)
        assert (error.errno, error.action) == (errno.ENOSPC, ErrorAction.STOP)
    assert one.last_error == error


def test_errors_that_do_not_stop_are_told_too(disk: DiskConfig):
    plan = FaultPlan([Fault(operation="write", errno="EIO"), Fault(operation="read", errno="EIO")])
    disk = replace(disk, faults=plan, rerror=ErrorPolicy.IGNORE, werror=ErrorPolicy.REPORT)
    machine, batch = write_run(
        disk, [BlockRequest.write(0, bytes(512)), BlockRequest.read(100, 512)]
    )
    with machine:
        log = Log(machine)
        assert machine.run(PATIENCE).status == 0
        outcomes = batch.outcomes(Results(machine.ram.read))
        assert machine.disks[0].io_status is IoStatus.OK
    assert [outcome.status for outcome in outcomes] == [IOERR, OK]
    assert log.kinds == [BlockIoError, BlockIoError, Shutdown]
    actions = {event.error.operation: event.error.action for event in log.events[:2]}
    assert actions == {"write": ErrorAction.REPORT, "read": ErrorAction.IGNORE}


def test_an_error_with_a_vcpu_busy_in_a_sink(disk: DiskConfig):
    """The error is told at once; the guest stops when the sink lets go, or is called off."""
    plan = FaultPlan([Fault(operation="write", errno="EIO", count=1)])
    disk = replace(disk, faults=plan, werror=ErrorPolicy.STOP)
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    driver.submit([BlockRequest.write(0, b"x" * 512)], wait=None)
    script.print(b"busy")
    script.sleep(1)
    script.exit(0)
    free = threading.Event()
    config = guest("script", initrd=script.encode(), disks=[disk])
    with Machine(config, console=lambda data: free.wait(PATIENCE)) as machine:
        log = Log(machine)
        machine.start()
        log.wait_for(BlockIoError)
        assert machine.status in (RunState.RUNNING, RunState.IO_ERROR)
        free.set()
        log.wait_for(Stop)
        assert machine.status is RunState.IO_ERROR
        machine.resume()
        assert machine.wait(PATIENCE).status == 0
    assert disk.path.read_bytes()[:512] == b"x" * 512


def test_an_error_while_the_user_has_stopped_the_guest(disk: DiskConfig):
    """What executes when the guest is stopped may fail then. One resume is enough for both."""
    begun, free = threading.Event(), threading.Event()

    def fail_late(access):
        begun.set()
        free.wait(PATIENCE)
        return Fault(errno="EIO").effect

    plan = FaultPlan([Fault(operation="write", call=fail_late, count=1)])
    disk = replace(disk, faults=plan, werror=ErrorPolicy.STOP)
    machine, batch = write_run(disk, [BlockRequest.write(0, b"y" * 512)])
    with machine:
        log = Log(machine)
        machine.start()
        assert begun.wait(PATIENCE)
        pauser = threading.Thread(target=machine.pause)
        pauser.start()
        free.set()
        pauser.join(PATIENCE)
        log.wait_for(Stop)
        machine.resume()
        assert machine.wait(PATIENCE).status == 0
        assert batch.outcomes(Results(machine.ram.read))[0].status == OK
    assert disk.path.read_bytes()[:512] == b"y" * 512
    assert log.kinds.count(BlockIoError) == 1
    assert log.kinds.count(Stop) == log.kinds.count(Resume)


def test_two_disks_that_fail_stop_the_guest_once(disk: DiskConfig, tmp_path: Path):
    second = tmp_path / "second.img"
    second.write_bytes(bytes(1 << 20))
    disks = [
        replace(
            disk,
            path=path,
            faults=FaultPlan([Fault(operation="write", errno="EIO", count=1)]),
            werror=ErrorPolicy.STOP,
        )
        for path in (disk.path, second)
    ]
    script = Script()
    drivers = [BlockDriver(script, nth=i, slot=i) for i in range(2)]
    for driver in drivers:
        driver.start()
    # The first is not waited for, so that both are on their way.
    drivers[0].submit([BlockRequest.write(0, b"1" * 512)], wait=None)
    drivers[1].submit([BlockRequest.write(0, b"2" * 512)])
    script.sleep(1000)
    script.exit(0)
    config = guest("script", initrd=script.encode(), disks=disks)
    with Machine(config) as machine:
        log = Log(machine)
        machine.start()
        while machine.outcome is None:
            if machine.status is RunState.IO_ERROR:
                machine.resume()
            time.sleep(0.002)
        assert machine.wait(PATIENCE).status == 0
    assert disk.path.read_bytes()[:512] == b"1" * 512
    assert second.read_bytes()[:512] == b"2" * 512
    assert [event.device for event in log.events if isinstance(event, BlockIoError)].count(
        "virtio1"
    ) == 1
    assert 1 <= log.kinds.count(Stop) <= 2
    assert log.kinds.count(Stop) == log.kinds.count(Resume)


def test_close_while_stopped_by_an_error(disk: DiskConfig):
    plan = FaultPlan([Fault(operation="write", errno="EIO")])
    disk = replace(disk, faults=plan, werror=ErrorPolicy.STOP)
    machine, _ = write_run(disk, [BlockRequest.write(0, b"z" * 512)])
    with machine:
        log = Log(machine)
        machine.start()
        log.wait_for(Stop)
    assert disk.path.read_bytes()[:512] == bytes(512)
    assert log.kinds == [BlockIoError, Stop]
