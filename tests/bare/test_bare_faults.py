"""Injected faults as the bare guest sees them: each fails only its own operations."""

import os
import random
import zlib
from pathlib import Path

import pytest
from patience import patience

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.bare.build import build_bare_guest
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bare.results import Results
from pykvm.bare.run import run_script
from pykvm.bare.tsc import host_tsc_khz
from pykvm.devices.virtio_blk import Engine, EngineFactory, ErrorPolicy, Image, SyncEngine
from pykvm.devices.virtio_blk.layers.faults import Access, Effect, Fault, FaultPlan
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.machine.events import BlockIoError, Event, Resume, Shutdown, Stop
from pykvm.memory import Ram
from pykvm.testing.recording_engine import EngineLog

pytestmark = pytest.mark.kvm

OK, IOERR = 0, 1
BLOCK = 4096
SECTORS = BLOCK // 512


@pytest.fixture
def disk(tmp_path: Path, content: bytes) -> DiskConfig:
    """A disk of 1 MiB that reports every error."""
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return DiskConfig(path, rerror=ErrorPolicy.REPORT, werror=ErrorPolicy.REPORT)


def faulty(disk: DiskConfig, *faults: Fault, seed: int = 0) -> DiskConfig:
    return replace(disk, faults=FaultPlan(faults, seed))


def data(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK)


def reads(count: int) -> list[BlockRequest]:
    """``count`` blocks in a row, from the first."""
    return [BlockRequest.read(i * SECTORS, BLOCK, hashed=True) for i in range(count)]


def crc(content: bytes, number: int) -> int:
    """Of block ``number``."""
    return zlib.crc32(content[number * BLOCK :][:BLOCK])


def test_one_bad_sector_in_a_merged_read(disk: DiskConfig, content: bytes):
    """The merged run fails; its members come again singly, and one of them is guilty."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(reads(32))
    plan = FaultPlan([Fault(operation="read", sectors=17 * SECTORS + 3, errno="EIO")])
    log = EngineLog()
    run = run_script(script, [replace(disk, engine=log.wrap(plan.wrap(SyncEngine)))])
    outcomes = batch.outcomes(run.results)
    assert [i for i, outcome in enumerate(outcomes) if outcome.status == IOERR] == [17]
    good = [i for i in range(32) if i != 17]
    assert [outcomes[i].status for i in good] == [OK] * 31
    assert [outcomes[i].crc for i in good] == [crc(content, i) for i in good]
    assert [outcomes[i].length for i in good] == [BLOCK + 1] * 31
    assert outcomes[17].length == 0
    singly = [("read", i * SECTORS, SECTORS, 1) for i in range(32)]
    assert log.operations() == [("read", 0, 32 * SECTORS, 32), *singly]
    stats = run.disks[0]
    assert stats["rd_merged"] == 31
    assert stats["rd_operations"] == 31
    assert stats["rd_bytes"] == 31 * BLOCK
    assert stats["failed_rd_operations"] == 1
    (rule,) = plan.rules
    assert (rule.matches, rule.strikes) == (2, 2)


def test_a_count_of_one_is_used_up_by_the_merged_run(disk: DiskConfig, content: bytes):
    """The seam is the operation, and a second attempt may succeed: the guest sees nothing."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(reads(8))
    run = run_script(script, [faulty(disk, Fault(operation="read", count=1, errno="EIO"))])
    outcomes = batch.outcomes(run.results)
    assert [(o.status, o.crc) for o in outcomes] == [(OK, crc(content, i)) for i in range(8)]
    assert run.disks[0]["rd_merged"] == 7
    assert run.disks[0]["failed_rd_operations"] == 0


def test_the_nth_write(disk: DiskConfig, content: bytes):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    # Not in a row, and so not merged: the third write is the third request.
    batch = driver.submit([BlockRequest.write(16 * i, data(i)) for i in range(4)])
    third = Fault(operation="write", nth=3, count=1, errno="EIO")
    run = run_script(script, [faulty(disk, third)])
    assert [o.status for o in batch.outcomes(run.results)] == [OK, OK, IOERR, OK]
    written = disk.path.read_bytes()
    for i in range(4):
        old = content[16 * 512 * i :][:BLOCK]
        assert written[16 * 512 * i :][:BLOCK] == (old if i == 2 else data(i))
    assert run.disks[0]["wr_operations"] == 3
    assert run.disks[0]["failed_wr_operations"] == 1


def test_a_write_that_fails_half_way(disk: DiskConfig, content: bytes):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit([BlockRequest.write(0, data(1))])
    run = run_script(script, [faulty(disk, Fault(operation="write", short=1024, errno="EIO"))])
    assert [o.status for o in batch.outcomes(run.results)] == [IOERR]
    assert disk.path.read_bytes() == data(1)[:1024] + content[1024:]


def test_a_failing_flush(disk: DiskConfig):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(
        [BlockRequest.write(0, data(1)), BlockRequest.flush(), BlockRequest.flush()]
    )
    run = run_script(script, [faulty(disk, Fault(operation="flush", count=1, errno="EIO"))])
    assert [o.status for o in batch.outcomes(run.results)] == [OK, IOERR, OK]
    assert run.disks[0]["failed_flush_operations"] == 1
    assert disk.path.read_bytes()[:BLOCK] == data(1)


@pytest.mark.parametrize("short", [100, 512, 1536, 5000])
def test_short_transfers_are_continued(disk: DiskConfig, content: bytes, short: int):
    """However little is moved at a time, the guest gets all of it."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    writes = [BlockRequest.write(128 + i * SECTORS, data(i)) for i in range(4)]
    batch = driver.submit([*reads(8), *writes])
    run = run_script(script, [faulty(disk, Fault(short=short))])
    outcomes = batch.outcomes(run.results)
    assert [o.status for o in outcomes] == [OK] * 12
    assert [o.crc for o in outcomes[:8]] == [crc(content, i) for i in range(8)]
    assert [o.length for o in outcomes] == [BLOCK + 1] * 8 + [1] * 4
    new = b"".join(data(i) for i in range(4))
    assert disk.path.read_bytes() == content[:65536] + new + content[65536 + len(new) :]
    assert run.disks[0]["rd_bytes"] == 8 * BLOCK
    assert run.disks[0]["wr_bytes"] == 4 * BLOCK


def test_a_transfer_that_never_moves_is_an_error(disk: DiskConfig):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(reads(1))
    run = run_script(script, [faulty(disk, Fault(short=0))])
    assert [o.status for o in batch.outcomes(run.results)] == [IOERR]


def test_a_slow_disk(disk: DiskConfig, content: bytes):
    """A delayed read is overtaken by others; a flush still waits for the delayed write."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(
        [
            BlockRequest.read(0, BLOCK, hashed=True),
            BlockRequest.write(64, data(1)),
            BlockRequest.flush(),
            BlockRequest.read(256, 512),
        ]
    )
    slow_read = Fault(operation="read", sectors=0, delay_ms=60)
    slow_write = Fault(operation="write", delay_ms=20)
    run = run_script(script, [faulty(disk, slow_read, slow_write)])
    outcomes = batch.outcomes(run.results)
    assert [o.status for o in outcomes] == [OK] * 4
    assert outcomes[0].crc == crc(content, 0)
    assert [o.order for o in outcomes] == [3, 1, 2, 0]
    # Half of it: the guest's idea of its clock is only about right.
    assert outcomes[0].ticks > 30 * host_tsc_khz()
    assert run.disks[0]["rd_total_time_ns"] >= 60_000_000
    assert disk.path.read_bytes()[32768:][:BLOCK] == data(1)


def test_a_reset_does_not_wait_for_a_delay(disk: DiskConfig, content: bytes):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    requests = [BlockRequest.write(0, data(1)), BlockRequest.read(64, 512)]
    # The quick one shows that the device has seen the other.
    batch = driver.submit(requests, expect=1)
    gone = script.reset()
    driver.start()
    again = driver.submit(reads(1))
    run = run_script(script, [faulty(disk, Fault(operation="write", delay_ms=3_600_000))])
    lost, quick = batch.outcomes(run.results)
    assert (lost.length, quick.status) == (None, OK)
    assert run.results[gone] == 0
    (outcome,) = again.outcomes(run.results)
    assert (outcome.status, outcome.crc) == (OK, crc(content, 0))
    assert disk.path.read_bytes() == content


def test_a_call_from_python(disk: DiskConfig):
    """The disk breaks in the middle of the run, and stays broken."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    first = driver.submit(reads(1))
    batch = driver.submit([BlockRequest.write(0, data(1)), BlockRequest.read(64, 512)])
    last = driver.submit([BlockRequest.read(64, 512), BlockRequest.flush()])
    seen: list[Access] = []

    def call(access: Access) -> Effect | None:
        seen.append(access)
        if access.operation == "write":
            plan.add(Fault(errno="ENODEV"))
        return None

    plan = FaultPlan([Fault(call=call)])
    run = run_script(script, [replace(disk, faults=plan)])
    statuses = [o.status for b in (first, batch, last) for o in b.outcomes(run.results)]
    assert statuses == [OK, OK, IOERR, IOERR, IOERR]
    assert seen[:2] == [Access("read", 0, SECTORS), Access("write", 0, SECTORS)]


def test_a_disk_that_is_mended_while_the_guest_waits(disk: DiskConfig, content: bytes):
    """The disk is full and the VM stops; space is made, it goes on, and has noticed nothing."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit([BlockRequest.write(i * SECTORS, data(i)) for i in range(4)])
    plan = FaultPlan()
    full = plan.add(Fault(operation="write", sectors=2 * SECTORS, errno="ENOSPC"))
    config = MachineConfig(
        kernel=build_bare_guest(),
        initrd=script.encode(),
        append="script",
        memory=MEMORY_NEEDED,
        disks=[replace(disk, werror=ErrorPolicy.ENOSPC, faults=plan)],
    )

    def mend(event: Event) -> None:
        events.append(event)
        if isinstance(event, Stop):
            plan.remove(full)
            machine.request_resume()

    events: list[Event] = []
    with Machine(config) as machine:
        machine.listen(mend)
        machine.run(timeout=patience())
        results = Results(machine.ram.read)
    assert [o.status for o in batch.outcomes(results)] == [OK] * 4
    assert disk.path.read_bytes() == b"".join(map(data, range(4))) + content[4 * BLOCK :]
    assert [type(event) for event in events] == [BlockIoError, Stop, Resume, Shutdown]
    assert full.strikes == 2, "the merged run, and its guilty member"


def test_the_same_seed_breaks_the_same_requests(disk: DiskConfig):
    def run(seed: int) -> list[int]:
        script = Script()
        driver = BlockDriver(script)
        driver.start()
        scattered = [BlockRequest.read(4 * i, 512, hashed=True) for i in range(40)]
        batch = driver.submit(scattered)
        flaky = Fault(operation="read", probability=0.5, errno="EIO")
        done = run_script(script, [faulty(disk, flaky, seed=seed)])
        return [outcome.status for outcome in batch.outcomes(done.results)]

    first = run(1)
    assert first == run(1)
    assert set(first) == {OK, IOERR}
    assert first != run(2)


def test_an_engine_of_ones_own_below_the_faults(disk: DiskConfig):
    """``engine`` makes the engine below the faults. Both end with the machine."""
    made: list[Engine] = []

    def engine(image: Image, ram: Ram) -> Engine:
        made.append(SyncEngine(image, ram))
        return made[-1]

    factory: EngineFactory = engine
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(reads(2))
    before = len(os.listdir("/proc/self/fd"))
    run = run_script(script, [replace(faulty(disk, Fault(sectors=0, errno="EIO")), engine=factory)])
    assert [o.status for o in batch.outcomes(run.results)] == [IOERR, OK]
    assert len(made) == 1
    assert len(os.listdir("/proc/self/fd")) == before
