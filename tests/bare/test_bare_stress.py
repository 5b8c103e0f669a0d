"""A guest under load whose disk fails at random, stops it and is resumed: it must not notice.

Nothing is lost, doubled or reordered: every request completes once, with the
status, the used length and the data that it would have if the disk had never
failed; the file is what a model says; and the statistics count each request
and each merge once, however often they were tried.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from bare_load import ROUNDS, SECTORS, TIMEOUT_US, Load
from bare_owner import COUNTED, Owner, counted, machine_of
from patience import PATIENCE

from pykvm.bare import (
    BlockDriver,
    Results,
    Script,
    WaitMode,
)
from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig

pytestmark = pytest.mark.kvm


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * 512))
    return DiskConfig(path, rerror=ErrorPolicy.STOP, werror=ErrorPolicy.STOP)


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
