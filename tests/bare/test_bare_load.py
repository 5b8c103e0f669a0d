"""The bare guest's closed loop: its duration, and the latencies that it counts."""

from pathlib import Path

import pytest

from pykvm.bare import BlockDriver, Script
from pykvm.bare.latency import bounds
from pykvm.bare.run import run_script
from pykvm.bare.script import filling, load_memory
from pykvm.bare.tsc import host_tsc_khz
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.machine import DiskConfig

pytestmark = pytest.mark.kvm


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    """A disk of zeroes."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return DiskConfig(path)


def test_every_latency_is_counted(disk: DiskConfig):
    script = Script()
    BlockDriver(script).start()
    step = script.load(VIRTIO_BLK_T_IN, total=300, sectors=8, span=2048, depth=8, random=7)
    load = run_script(script, [disk]).results[step]
    latencies = load.latencies
    assert latencies.total == load.completed == 300
    filled = [bounds(i) for i, count in enumerate(latencies.counts) if count]
    assert filled[0][0] <= latencies.least < filled[0][1]
    assert filled[-1][0] <= latencies.most < filled[-1][1]
    counts = [count for count in latencies.counts if count]
    low = sum(start * n for (start, _), n in zip(filled, counts, strict=True))
    high = sum(end * n for (_, end), n in zip(filled, counts, strict=True))
    assert low <= latencies.sum < high


def test_a_loop_ends_after_its_time(disk: DiskConfig):
    script = Script()
    BlockDriver(script).start()
    step = script.load(
        VIRTIO_BLK_T_IN, total=2**32 - 1, sectors=8, span=2048, depth=4, duration_us=20_000
    )
    load = run_script(script, [disk]).results[step]
    assert load.errors == 0
    assert load.completed == load.latencies.total >= 4
    assert load.ticks >= 20 * host_tsc_khz()


def test_loops_may_share_their_memory(disk: DiskConfig):
    script = Script()
    BlockDriver(script).start()
    memory = script.arena.allocate(1 << 20, 4096)
    shape = {"sectors": 8, "span": 2048, "depth": 8, "indirect": True, "memory": memory}
    steps = [script.load(VIRTIO_BLK_T_IN, total=total, **shape) for total in (10, 100)]
    after = script.arena.allocate(16)
    results = run_script(script, [disk]).results
    assert [results[step].completed for step in steps] == [10, 100]
    assert [results[step].errors for step in steps] == [0, 0]
    assert after == memory + (1 << 20)


@pytest.mark.parametrize("indirect", [False, True])
def test_data_in_many_descriptors(disk: DiskConfig, indirect: bool):
    script = Script()
    BlockDriver(script).start()
    sectors, depth, segments = 8, 4, 30
    needed = load_memory(depth, sectors, segments)
    memory = script.arena.allocate(needed, 4096)
    script.fill_memory(memory, 512 * sectors * depth, 1)
    step = script.load(
        VIRTIO_BLK_T_OUT,
        total=depth,
        sectors=sectors,
        span=2048,
        depth=depth,
        segments=segments,
        indirect=indirect,
        memory=memory,
    )
    load = run_script(script, [disk]).results[step]
    assert (load.completed, load.errors) == (depth, 0)
    expected = filling(512 * sectors * depth, 1)
    assert disk.path.read_bytes() == expected.ljust(1 << 20, b"\0")


def test_exits_are_timed_while_the_disk_works(disk: DiskConfig):
    script = Script()
    BlockDriver(script).start()
    step = script.load(VIRTIO_BLK_T_IN, total=100, sectors=8, span=2048, exits=True)
    without = script.load(VIRTIO_BLK_T_IN, total=100, sectors=8, span=2048)
    results = run_script(script, [disk]).results
    load = results[step]
    assert load.completed == 100
    assert load.exits.total > 0
    assert 0 < load.exits.least <= load.exits.percentile(50) <= load.exits.most
    assert load.exits.sum < load.ticks
    assert results[without].exits.total == 0


def test_exits_without_requests(disk: DiskConfig):
    script = Script()
    BlockDriver(script).start()
    step = script.load(
        VIRTIO_BLK_T_IN, total=1, sectors=8, span=8, depth=0, duration_us=20_000, exits=True
    )
    load = run_script(script, [disk]).results[step]
    assert (load.completed, load.notifications) == (0, 0)
    assert load.exits.total > 0
    assert load.ticks >= 20 * host_tsc_khz()
