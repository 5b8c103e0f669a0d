"""The bare guest's closed loop: how long it goes on, and the latencies it counts."""

from pathlib import Path

import pytest

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN
from pykvm.machine import DiskConfig
from pykvm.testing.bare import BlockDriver, Script
from pykvm.testing.bare.latency import bounds
from pykvm.testing.bare.run import run_script
from pykvm.testing.bare.script import host_tsc_khz

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
    assert (latencies.least, latencies.most) == (load.latency_min, load.latency_max)
    filled = [bounds(i) for i, count in enumerate(latencies.counts) if count]
    assert filled[0][0] <= load.latency_min < filled[0][1]
    assert filled[-1][0] <= load.latency_max < filled[-1][1]
    counts = [count for count in latencies.counts if count]
    low = sum(start * n for (start, _), n in zip(filled, counts, strict=True))
    high = sum(end * n for (_, end), n in zip(filled, counts, strict=True))
    assert low <= load.latency_sum < high


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
