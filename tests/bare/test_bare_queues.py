"""One disk with several queues, driven by one vCPU or by two at once."""

import os
from pathlib import Path
from typing import Any

import pytest
from bare_owner import Owner, counted, machine_of
from patience import PATIENCE

from pykvm.bare import BlockDriver, BlockRequest, Results, Script, WaitMode
from pykvm.bare.block import DEFAULT_FEATURES
from pykvm.bare.build import build_bare_guest
from pykvm.bare.run import run_script
from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_MQ, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.errors import UsageError
from pykvm.host.threads import usable_cpus
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig, Machine, MachineConfig

pytestmark = pytest.mark.kvm

SECTORS = 2048
TIMEOUT_US = int(1e6 * PATIENCE)
"""For the guest: its clock goes on while it is stopped."""


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> DiskConfig:
    """A disk of two queues, full of "o"."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"o" * 512 * SECTORS)
    return DiskConfig(path, num_queues=2, iothreads=request.param)


def test_each_queue_has_its_size_and_its_interrupt(disk: DiskConfig):
    script = Script()
    driver = BlockDriver(script)
    negotiated = script.initialise(DEFAULT_FEATURES)
    script.msix(3)
    for queue, size in enumerate((4, 64)):
        script.queue(script.arena.ring(size), queue, size, vector=queue + 1)
    script.ready()
    request = BlockRequest.read(7, 512)
    batches = [driver.submit([request], queue=i, wait=WaitMode.SPIN) for i in (1, 0, 1, 1)]
    counters = script.counters()
    run = run_script(script, [disk])
    assert run.results[negotiated].accepted & VIRTIO_BLK_F_MQ
    for batch in batches:
        (outcome,) = batch.outcomes(run.results)
        assert (outcome.status, outcome.data) == (0, b"o" * 512)
    counts = run.results[counters]
    assert (counts[0x41], counts[0x42]) == (1, 3)
    assert [queue["rd_operations"] for queue in run.disks[0]["queues"]] == [1, 3]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
@pytest.mark.parametrize("faulty", [False, True])
def test_two_vcpus_with_a_queue_each(disk: DiskConfig, faulty: bool):
    """Closed loops of reads and of writes at once, also while all stops again and again."""
    total, size, half = 400, 1024, SECTORS // 2
    faults = FaultPlan([Fault(errno="EIO", probability=0.01)] if faulty else ())
    stop = ErrorPolicy.STOP
    disk = replace(disk, merge=MergePolicy.OFF, rerror=stop, werror=stop, faults=faults)
    ours = Script()
    theirs = Script(cpu=1, arena=ours.arena)
    BlockDriver(ours).start(queues=2)
    shape: dict[str, Any] = {"total": total, "sectors": size // 512, "stride": 2, "random": 5}
    shape |= {"span": half, "depth": 8, "timeout_us": TIMEOUT_US}
    writes = theirs.load(VIRTIO_BLK_T_OUT, queue=1, first=half, **shape)
    ours.spawn(theirs)
    reads = ours.load(VIRTIO_BLK_T_IN, queue=0, **shape)
    ours.join(1, TIMEOUT_US)
    ours.exit(0)
    with machine_of(ours, disk, cpus=2) as machine:
        machine.start()
        with Owner(machine, seed=7) as owner:
            assert machine.wait(PATIENCE).status == 0
        results = Results(machine.ram.read)
        counts = [stats.counters() for stats in machine.disks[0].device.queue_stats]
        both = counted(machine)
    assert bool(owner.stops) == faulty
    assert owner.pauses
    for load in (reads, writes):
        assert (results[load].completed, results[load].errors) == (total, 0)
    for (one, other), queue in zip((("rd", "wr"), ("wr", "rd")), counts, strict=True):
        assert queue[f"{one}_operations"] == both[f"{one}_operations"] == total
        assert queue[f"{one}_bytes"] == both[f"{one}_bytes"] == total * size
        assert queue[f"{other}_operations"] == 0


def test_more_queues_than_kvm_has_doorbells_for(disk: DiskConfig):
    config = MachineConfig(kernel=build_bare_guest(), disks=[replace(disk, num_queues=64)] * 16)
    with pytest.raises(UsageError, match="cannot have 1024 queues together; use at most 960"):
        Machine(config)


# -- CPU affinity ------------------------------------------------------------------


def test_a_vcpu_runs_on_the_cpus_of_its_option():
    last = max(usable_cpus())
    seen: list[set[int]] = []

    def sink(data: bytes) -> None:
        seen.append(os.sched_getaffinity(0))

    config = MachineConfig(
        kernel=build_bare_guest(), append="hello 3", cpu_affinity=frozenset([last])
    )
    with Machine(config, console=sink) as machine:
        machine.run(PATIENCE)
    assert seen
    assert all(cpus == {last} for cpus in seen)


@pytest.mark.parametrize("of_disk", [False, True])
def test_a_cpu_that_there_is_not_is_refused(disk: DiskConfig, of_disk: bool):
    cpus = frozenset([0, 8191])
    config = MachineConfig(kernel=build_bare_guest(), append="hello 3")
    if of_disk:
        config = replace(config, disks=[replace(disk, cpu_affinity=cpus)])
    else:
        config = replace(config, cpu_affinity=cpus)
    with pytest.raises(UsageError, match="CPU 8191 of this host; choose among"):
        Machine(config)
