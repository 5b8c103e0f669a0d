"""Two vCPUs at once."""

import os
from pathlib import Path

import pytest

from pykvm.bare import BlockDriver, BlockRequest, RunState, Script, WaitMode
from pykvm.bare.run import run_script
from pykvm.machine import DiskConfig

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs"),
]


def test_two_vcpus_run_at_once():
    script = Script()
    other = Script(cpu=1, arena=script.arena)
    word = script.arena.allocate(64, 64)
    # Each needs the other's last word for its next one.
    theirs = other.ping_pong(word, turn=1, rounds=200)
    other.print(b"second vCPU\n")
    script.spawn(other)
    ours = script.ping_pong(word, turn=0, rounds=200)
    joined = script.join(1)
    run = run_script(script, cpus=2)
    assert run.results[joined] == RunState.FINISHED
    assert run.results[ours].rounds == run.results[theirs].rounds == 200
    # In ticks: far below the shortest time slice of a scheduler (1 ms or more).
    assert run.results[ours].fastest < 200_000
    assert run.console == b"second vCPU\n"


def test_each_vcpu_drives_its_own_disk(tmp_path: Path):
    disks = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 65536)
        disks.append(DiskConfig(tmp_path / name))
    script = Script()
    other = Script(cpu=1, arena=script.arena)
    drivers = [BlockDriver(script, nth=i, slot=i) for i in range(2)]
    for number, driver in enumerate(drivers):
        # The configuration ports are shared: one vCPU sets up both devices.
        driver.start(msix=True, apic_id=number)
    ours, theirs = drivers
    theirs.script = other
    requests = [BlockRequest.read(i, 512) for i in range(4)]
    their_batches = [theirs.submit(requests, wait=WaitMode.SPIN) for _ in range(10)]
    script.spawn(other)
    our_batches = [ours.submit(requests, wait=WaitMode.SPIN) for _ in range(10)]
    script.join(1)
    counters = script.counters()
    run = run_script(script, disks, cpus=2)
    for batches, byte in ((our_batches, b"a"), (their_batches, b"b")):
        outcomes = [outcome for batch in batches for outcome in batch.outcomes(run.results)]
        assert {(o.status, o.data) for o in outcomes} == {(0, byte * 512)}
    assert all(run.results[counters][vector] >= 10 for vector in (0x41, 0x46))
