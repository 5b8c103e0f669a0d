"""The exact operations that a batch becomes, under each policy, through the whole machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from patience import patience

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.bare.build import build_bare_guest
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bare.results import Results
from pykvm.devices.virtio_blk import MergePolicy, SyncEngine
from pykvm.devices.virtio_blk.observe.stats import COUNTERS
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.testing.recording_engine import EngineLog

pytestmark = pytest.mark.kvm

SECTORS = 2048
CONTENT = Random(5).randbytes(SECTORS * 512)
QUEUE_SIZE = 256
SEQUENTIAL, SORTED = MergePolicy.SEQUENTIAL, MergePolicy.SORTED
SORTED_BATCH, OFF = MergePolicy.SORTED_BATCH, MergePolicy.OFF

read = BlockRequest.read
flush = BlockRequest.flush


def write(sector: int, length: int, fill: int = 0) -> BlockRequest:
    return BlockRequest.write(sector, bytes([fill or sector % 251 + 1]) * length)


@dataclass(frozen=True)
class Seen:
    """What became of a batch: operations (kind, sector, sectors, members), in order; counters."""

    operations: list[tuple[str, int, int, int]]
    stats: dict[str, int]


def run_batch(tmp_path: Path, batch: Sequence[BlockRequest], **options: object) -> Seen:
    """Let the bare guest post ``batch`` at once; check every answer against a model disk."""
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    log = EngineLog()
    disk = DiskConfig(path, engine=log.wrap(SyncEngine), **options)  # type: ignore[arg-type]
    script = Script()
    driver = BlockDriver(script)
    driver.start(size=QUEUE_SIZE)
    posted = driver.submit(batch)
    config = MachineConfig(
        kernel=build_bare_guest(),
        append="script",
        initrd=script.encode(),
        memory=MEMORY_NEEDED,
        disks=[disk],
    )
    with Machine(config) as machine:
        machine.run(timeout=patience())
        outcomes = posted.outcomes(Results(machine.ram.read))
        stats = machine.statistics()["disks"][0]
    model = bytearray(CONTENT)
    for request, outcome in zip(batch, outcomes, strict=True):
        start = request.sector * 512
        assert (outcome.status, outcome.length) == (0, request.length + 1)
        assert outcome.data == model[start : start + request.length]
        model[start : start + len(request.data)] = request.data
    assert path.read_bytes() == model
    return Seen(log.operations(), {name: n for name, n in stats.items() if name in COUNTERS})


def merged(seen: Seen) -> tuple[int, int]:
    return seen.stats["rd_merged"], seen.stats["wr_merged"]


# 16 requests that nothing touches, then 32 that follow each other.
APART = [1000 + 10 * i for i in range(16)]
RUN = list(range(32))
PLAINLY = [(sector, 1, 1) for sector in APART]


@pytest.mark.parametrize(
    ("policy", "operations", "count"),
    [
        (SEQUENTIAL, [*PLAINLY, (0, 32, 32)], 31),
        (SORTED, [(0, 16, 16), *PLAINLY, (16, 16, 16)], 30),
        (SORTED_BATCH, [(0, 16, 16), *PLAINLY, (16, 16, 16)], 30),
        (OFF, [*PLAINLY, *((sector, 1, 1) for sector in RUN)], 0),
    ],
)
def test_the_example_of_2014(
    tmp_path: Path, policy: MergePolicy, operations: list[tuple[int, int, int]], count: int
) -> None:
    batch = [write(sector, 512) for sector in [*APART, *RUN]]
    seen = run_batch(tmp_path, batch, merge=policy)
    assert seen.operations == [("write", *operation) for operation in operations]
    assert merged(seen) == (0, count)
    assert seen.stats["wr_operations"] == 48


@pytest.mark.parametrize(("policy", "count"), [(SEQUENTIAL, 31), (SORTED, 30), (SORTED_BATCH, 0)])
def test_reads_merge_as_well(tmp_path: Path, policy: MergePolicy, count: int) -> None:
    batch = [read(sector, 512) for sector in [*APART, *RUN]]
    seen = run_batch(tmp_path, batch, merge=policy)
    assert len(seen.operations) == 48 - count
    assert merged(seen) == (count, 0)
    assert seen.stats["rd_operations"] == 48


# The flush and the second write of sector 102 start when the operations before them have completed.
MIXED = [
    read(0, 512),
    read(1, 512),
    write(100, 512),
    write(101, 1024),
    flush(),
    write(103, 512),
    read(16, 4096),
    write(104, 512),
    write(103, 512, fill=9),
]


@pytest.mark.parametrize(
    ("policy", "operations", "counts"),
    [
        (
            SEQUENTIAL,
            [
                ("read", 0, 2, 2),
                ("write", 100, 3, 2),
                ("write", 103, 1, 1),
                ("read", 16, 8, 1),
                ("write", 104, 1, 1),
                ("flush", 0, 0, 1),
                ("write", 103, 1, 1),
            ],
            (1, 1),
        ),
        (
            SORTED,
            [
                ("read", 0, 2, 2),
                ("write", 100, 3, 2),
                ("write", 103, 1, 1),
                ("read", 16, 8, 1),
                ("flush", 0, 0, 1),
                ("write", 103, 2, 2),
            ],
            (1, 2),
        ),
        (
            SORTED_BATCH,
            [
                ("read", 0, 1, 1),
                ("read", 1, 1, 1),
                ("write", 100, 3, 2),
                ("read", 16, 8, 1),
                ("write", 103, 2, 2),
                ("flush", 0, 0, 1),
                ("write", 103, 1, 1),
            ],
            (0, 2),
        ),
        (
            OFF,
            [
                ("read", 0, 1, 1),
                ("read", 1, 1, 1),
                ("write", 100, 1, 1),
                ("write", 101, 2, 1),
                ("write", 103, 1, 1),
                ("read", 16, 8, 1),
                ("write", 104, 1, 1),
                ("flush", 0, 0, 1),
                ("write", 103, 1, 1),
            ],
            (0, 0),
        ),
    ],
)
def test_a_mixed_batch(
    tmp_path: Path,
    policy: MergePolicy,
    operations: list[tuple[str, int, int, int]],
    counts: tuple[int, int],
) -> None:
    seen = run_batch(tmp_path, MIXED, merge=policy)
    assert seen.operations == operations
    assert merged(seen) == counts
    names = ("rd_operations", "wr_operations", "flush_operations")
    assert [seen.stats[name] for name in names] == [3, 5, 1]
    assert (seen.stats["rd_bytes"], seen.stats["wr_bytes"]) == (5120, 3072)


def test_merge_max(tmp_path: Path) -> None:
    seen = run_batch(tmp_path, [read(i, 512) for i in range(10)], merge_max=4)
    assert seen.operations == [("read", 0, 4, 4), ("read", 4, 4, 4), ("read", 8, 2, 2)]
    assert merged(seen) == (7, 0)


def test_any_framing_merges(tmp_path: Path) -> None:
    batch = [
        write(0, 1024).laid_out(readable=[10, 100]),
        write(2, 512).laid_out(readable=[16, 1, 510]),
        write(3, 512).laid_out(indirect=True),
    ]
    seen = run_batch(tmp_path, batch)
    assert seen.operations == [("write", 0, 4, 3)]
