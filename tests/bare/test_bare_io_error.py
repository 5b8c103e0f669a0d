"""A failing disk stops a real machine, which later continues without a loss."""

import errno
import threading
import time
from pathlib import Path

import pytest
from bare_events import Log, guest, no_threads_left
from patience import PATIENCE

from pykvm.bare import BlockDriver, BlockRequest, Results, Script
from pykvm.devices.virtio_blk import ErrorAction, ErrorPolicy
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig, IoStatus, Machine, RunState
from pykvm.machine.events import BlockIoError, Resume, Shutdown, Stop
from pykvm.machine.outcome import OutcomeKind

pytestmark = pytest.mark.kvm

OK, IOERR = 0, 1


@pytest.fixture(autouse=True)
def _no_threads_left():
    with no_threads_left():
        yield


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return DiskConfig(path)


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


def test_errors_that_do_not_stop_are_reported_too(disk: DiskConfig):
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


def test_an_error_that_stops_the_guest_ends_a_run_that_nobody_listens_to(disk: DiskConfig):
    disk = replace(disk, faults=FaultPlan([Fault(operation="write", errno="ENOSPC")]))
    machine, _ = write_run(disk, [BlockRequest.write(0, b"x" * 512)])
    with machine:
        outcome = machine.run(PATIENCE)
    assert outcome.kind is OutcomeKind.ERROR
    assert outcome.reason == "virtio0: a write failed: ENOSPC"


def test_an_error_with_a_vcpu_busy_in_a_sink(disk: DiskConfig):
    """The event comes at once. The guest stops when the sink returns, unless it is resumed."""
    plan = FaultPlan([Fault(operation="write", errno="EIO", count=1)])
    disk = replace(disk, faults=plan, werror=ErrorPolicy.STOP)
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    driver.submit([BlockRequest.write(0, b"x" * 512)], wait=None)
    script.print(b"busy")
    script.sleep(1)
    script.wait(1)
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
