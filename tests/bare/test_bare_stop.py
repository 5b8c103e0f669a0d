"""A stop meets the end of the run, a reset by the guest, or the setup of the disk."""

import threading
from pathlib import Path

import pytest
from bare_owner import Owner, machine_of
from patience import PATIENCE, until

from pykvm.bare import BlockDriver, BlockRequest, Results, Script
from pykvm.bare.block import UNTOUCHED, Batch
from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.devices.virtio_blk.serving.io_thread_group import Halt
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig, Machine
from pykvm.machine.events import Event, Stop
from pykvm.machine.outcome import Outcome, OutcomeKind

pytestmark = pytest.mark.kvm

BDF = 2 << 3
COMMAND, MEMORY = 0x04, 2
SECTORS = 256
OK = 0


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * 512))
    return DiskConfig(path, rerror=ErrorPolicy.STOP, werror=ErrorPolicy.STOP)


def fill(number: int) -> bytes:
    return bytes([number]) * 512


def statuses(machine: Machine, batch: Batch) -> list[int]:
    """The status byte of each request, whatever the script has come to."""
    places = [placed.chain.segments[-1].address for placed in batch.requests]
    return [machine.ram.read(place, 1)[0] for place in places]


def used_index(machine: Machine, driver: BlockDriver) -> int:
    return int.from_bytes(machine.ram.read(driver.rings[-1].used + 2, 2), "little")


@pytest.mark.parametrize("quit_", [True, False])
@pytest.mark.parametrize("merge", list(MergePolicy))
def test_quitting_while_stopped_claims_no_unwritten_data(
    disk: DiskConfig, merge: MergePolicy, quit_: bool
):
    """Data that the guest sees as written is in the file. Later requests do not run."""
    plan = FaultPlan([Fault(operation="write", sectors=(5, 6), errno="ENOSPC")])
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    writes = [BlockRequest.write(sector, fill(sector)) for sector in range(1, 9)]
    batch = driver.submit([*writes, BlockRequest.flush()])
    script.exit(0)
    stopped = threading.Event()

    def heard(event: Event) -> None:
        if isinstance(event, Stop):
            stopped.set()

    with machine_of(script, replace(disk, merge=merge, faults=plan)) as machine:
        machine.listen(heard)
        machine.start()
        assert stopped.wait(PATIENCE)
        if quit_:
            machine.finish(Outcome.quit())
            assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT
        # The devices' end, and then one look at the memory.
        machine.board.close()
        found = statuses(machine, batch)
        used = used_index(machine, driver)
    expected = [OK if sector < 5 else UNTOUCHED for sector in range(1, 9)]
    assert found == [*expected, UNTOUCHED]
    assert used == 4
    content = disk.path.read_bytes()
    for sector in range(1, 9):
        written = content[sector * 512 :][:512]
        assert written == (fill(sector) if sector < 5 else bytes(512))


def test_resets_that_meet_stops(disk: DiskConfig):
    """A driver resets the disk after a failure, sometimes before the stop, sometimes after it."""
    rounds = 40
    plan = FaultPlan([Fault(operation="write", sectors=f"0-{rounds - 1}", errno="EIO")])
    script = Script()
    driver = BlockDriver(script)
    lost, kept = [], []
    for number in range(rounds):
        driver.start(msix=True)
        failing = [BlockRequest.write(number, fill(1)), BlockRequest.flush()]
        lost.append((driver.submit(failing, wait=None), driver.rings[-1]))
        # From no time at all to more than a stop takes.
        script.sleep(number * 50)
        script.reset()
        driver.start(msix=True)
        kept.append(driver.submit([BlockRequest.write(100 + number, fill(number + 1))]))
        script.reset()
    script.exit(0)
    with machine_of(script, replace(disk, faults=plan)) as machine:
        machine.start()
        with Owner(machine, seed=1) as owner:
            assert machine.wait(PATIENCE).status == 0
        results = Results(machine.ram.read)
        for batch, ring in lost:
            assert statuses(machine, batch) == [UNTOUCHED] * 2
            assert machine.ram.read(ring.used + 2, 2) == bytes(2)
        assert {batch.outcomes(results)[0].status for batch in kept} == {OK}
        assert machine.statistics()["disks"][0]["wr_operations"] == rounds
    assert owner.events["BlockIoError"] > 0
    assert owner.events["Stop"] == owner.events["Resume"] > 0
    content = disk.path.read_bytes()
    assert content[: rounds * 512] == bytes(rounds * 512)
    assert content[100 * 512 :][: rounds * 512] == b"".join(map(fill, range(1, rounds + 1)))


def test_pauses_that_meet_the_drivers_start_and_reset(disk: DiskConfig):
    rounds = 60
    script = Script()
    driver = BlockDriver(script)
    batches = []
    for number in range(rounds):
        driver.start(msix=True)
        requests = [BlockRequest.read(number + i, 512, hashed=True) for i in range(4)]
        batches.append(driver.submit(requests))
        driver.submit(requests, wait=None)
        script.reset()
    script.exit(0)
    with machine_of(script, disk) as machine:
        machine.start()
        with Owner(machine, seed=2) as owner:
            assert machine.wait(PATIENCE).status == 0
        results = Results(machine.ram.read)
        for batch in batches:
            assert [outcome.status for outcome in batch.outcomes(results)] == [OK] * 4
    assert owner.pauses > 0


@pytest.mark.parametrize("delay_us", [0, 100, 300, 1000, 3000])
def test_an_end_that_meets_a_stop(disk: DiskConfig, delay_us: int):
    """The guest powers off while its disk fails: with or without a stop on the way."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit([BlockRequest.write(1, fill(1))], wait=None)
    script.sleep(delay_us)
    script.exit(7)
    disk = replace(disk, faults=FaultPlan([Fault(operation="write", errno="EIO")]))
    with machine_of(script, disk) as machine:
        machine.start()
        with Owner(machine, seed=3):
            assert machine.wait(PATIENCE).status == 7
        assert statuses(machine, batch) == [UNTOUCHED]
    assert disk.path.read_bytes() == bytes(SECTORS * 512)


def test_a_run_ends_while_a_vcpu_turns_bus_mastering_off(disk: DiskConfig):
    """A vCPU that turns bus mastering off waits for operations in flight; a run's end does not."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    # The quick one shows that the device has seen the other.
    driver.submit([BlockRequest.write(1, fill(1)), BlockRequest.read(64, 512)], expect=1)
    script.pci_config(BDF, COMMAND, 2, MEMORY)
    slow = FaultPlan([Fault(operation="write", delay_ms=3_600_000)])
    with machine_of(script, replace(disk, faults=slow)) as machine:
        machine.start()
        threads = machine.disks[0].device._threads
        until(lambda: threads.halted_by(Halt.TRANSPORT) and threads._services)
        machine.finish(Outcome.timeout(0))
        assert machine.wait(PATIENCE).kind is OutcomeKind.TIMEOUT
    assert disk.path.read_bytes() == bytes(SECTORS * 512)
