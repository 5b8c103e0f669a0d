"""A guest under load whose disk fails at random, stops it and is resumed: it must not notice.

Nothing is lost, doubled or reordered: every request completes once, with the
status, the used length and the data that it would have if the disk had never
failed; the file is what a model says; and the statistics count each request
and each merge once, however often they were tried.
"""

import os
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bare_owner import COUNTED, Owner, counted, machine_of
from patience import PATIENCE

from pykvm.bare import (
    BlockDriver,
    BlockRequest,
    RecordError,
    Results,
    Script,
    WaitMode,
)
from pykvm.bare.block import Batch
from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig

pytestmark = pytest.mark.kvm

SECTORS = 512
ROUNDS = 100
TIMEOUT_US = int(1e6 * PATIENCE)
"""For the guest: its clock goes on while it is stopped."""


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * 512))
    return DiskConfig(path, rerror=ErrorPolicy.STOP, werror=ErrorPolicy.STOP)


@dataclass(frozen=True)
class Round:
    """A posted batch, and the expected result of each request: the CRC of a read, else 0."""

    batch: Batch
    lengths: list[int]
    crcs: list[int]


class Load:
    """A script of random batches, with a model of the disk that they shall leave."""

    def __init__(self, seed: int) -> None:
        self.script = Script()
        self.model = bytearray(SECTORS * 512)
        self.counts = dict.fromkeys(COUNTED, 0)
        self._dice = random.Random(seed)
        driver = BlockDriver(self.script)
        driver.start(msix=True)
        self.rounds = [self._round(driver) for _ in range(ROUNDS)]
        self.silence = self.script.wait(1, timeout_us=10_000)
        self.script.exit(0)

    def _round(self, driver: BlockDriver) -> Round:
        """Up to 16 requests, often side by side, sometimes over each other."""
        requests, lengths, crcs = [], [], []
        sector = 0
        for _ in range(self._dice.randint(4, 16)):
            if self._dice.random() < 0.25:
                sector = self._dice.randrange(SECTORS)
            size = 512 * self._dice.randint(1, 3)
            sector = min(sector, SECTORS - size // 512)
            request, crc = self._request(sector, size)
            requests.append(request)
            lengths.append(1 + (size if request.type == VIRTIO_BLK_T_IN else 0))
            crcs.append(crc)
            sector += size // 512
        wait = self._dice.choice((WaitMode.POLL, WaitMode.IDLE))
        batch = driver.submit(requests, wait=wait, timeout_us=TIMEOUT_US)
        return Round(batch, lengths, crcs)

    def _request(self, sector: int, size: int) -> tuple[BlockRequest, int]:
        kind = self._dice.choices(("rd", "wr", "flush"), (8, 10, 1))[0]
        self.counts[f"{kind}_operations"] += 1
        if kind == "flush":
            return BlockRequest.flush(), 0
        self.counts[f"{kind}_bytes"] += size
        span = slice(sector * 512, sector * 512 + size)
        if kind == "rd":
            return BlockRequest.read(sector, size, hashed=True), zlib.crc32(self.model[span])
        self.model[span] = data = self._dice.randbytes(size)
        return BlockRequest.write(sector, data), 0

    def check(self, results: Results) -> None:
        """Each request completed once, and as it should."""
        for round_ in self.rounds:
            assert round_.batch.wait is not None
            tags = [done.tag for done in results[round_.batch.wait].completions]
            assert sorted(tags) == sorted(placed.tag for placed in round_.batch.requests)
            outcomes = round_.batch.outcomes(results)
            assert [outcome.status for outcome in outcomes] == [0] * len(outcomes)
            assert [outcome.length for outcome in outcomes] == round_.lengths
            assert [outcome.crc for outcome in outcomes] == round_.crcs
        assert results.record(self.silence).error is RecordError.TIMEOUT
        assert results.whatever(self.silence).completions == ()


def faults(seed: int) -> FaultPlan:
    return FaultPlan(
        [
            Fault(operation="flush", errno="EIO", probability=0.3),
            Fault(short=512, probability=0.1),
            Fault(errno="EIO", probability=0.12),
            Fault(errno="ENOSPC", probability=0.12, short=512),
        ],
        seed=seed,
    )


@pytest.mark.parametrize("merge", [MergePolicy.SEQUENTIAL, MergePolicy.SORTED])
def test_a_hundred_rounds_of_faults(disk: DiskConfig, merge: MergePolicy):
    load = Load(seed=1)
    disk = replace(disk, merge=merge)
    with machine_of(load.script, disk) as machine:
        assert machine.run(PATIENCE).status == 0
        undisturbed = counted(machine)
        load.check(Results(machine.ram.read))
    merged = {name: undisturbed[name] for name in ("rd_merged", "wr_merged")}
    assert undisturbed == {**load.counts, **merged}
    assert min(merged.values()) > 0
    disk.path.write_bytes(bytes(SECTORS * 512))
    with machine_of(load.script, replace(disk, faults=faults(2))) as machine:
        machine.start()
        with Owner(machine, seed=3) as owner:
            assert machine.wait(PATIENCE).status == 0
        assert counted(machine) == undisturbed
        load.check(Results(machine.ram.read))
    assert disk.path.read_bytes() == load.model
    assert owner.events["Stop"] == owner.events["Resume"] >= ROUNDS
    assert min(owner.stops, owner.pauses, owner.events["BlockIoError"]) > 0


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
@pytest.mark.parametrize("wait", list(WaitMode))
def test_two_vcpus_with_a_disk_each(disk: DiskConfig, tmp_path: Path, wait: WaitMode):
    """Closed loops of reads and of writes, stopped again and again: each counts exactly."""
    total, size = 3000, 1024
    second = replace(disk, path=tmp_path / "second.img")
    second.path.write_bytes(b"x" * (SECTORS * 512))
    disks = [
        replace(one, faults=FaultPlan([Fault(errno="EIO", probability=0.01)], seed))
        for seed, one in enumerate((disk, second))
    ]
    ours = Script()
    theirs = Script(cpu=1, arena=ours.arena)
    for number in range(2):
        # The configuration ports are shared: one vCPU sets up both devices.
        BlockDriver(ours, nth=number, slot=number).start(msix=True, apic_id=number)
    shape: dict[str, Any] = {"total": total, "sectors": size // 512, "stride": 2, "random": 5}
    shape |= {"span": SECTORS, "depth": 8, "wait": wait, "timeout_us": TIMEOUT_US}
    writes = theirs.load(VIRTIO_BLK_T_OUT, slot=1, **shape)
    ours.spawn(theirs)
    reads = ours.load(VIRTIO_BLK_T_IN, slot=0, **shape)
    ours.join(1, TIMEOUT_US)
    ours.exit(0)
    with machine_of(ours, *disks, cpus=2) as machine:
        machine.start()
        with Owner(machine, seed=6) as owner:
            assert machine.wait(PATIENCE).status == 0
        results = Results(machine.ram.read)
        counts = [counted(machine, number) for number in range(2)]
    for load in (reads, writes):
        assert (results[load].completed, results[load].errors) == (total, 0)
    for kind, counters in zip(("rd", "wr"), counts, strict=True):
        expected = dict.fromkeys(COUNTED, 0)
        expected[f"{kind}_operations"] = total
        expected[f"{kind}_bytes"] = total * size
        expected[f"{kind}_merged"] = counters[f"{kind}_merged"]  # as chance has it
        assert counters == expected
    assert min(owner.stops, owner.pauses, owner.events["BlockIoError"]) > 0
