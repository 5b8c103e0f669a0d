"""A trace of the whole machine has the same numbers as the statistics, request by request."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.bare.run import BareRun, run_script
from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.machine import DiskConfig
from pykvm.trace import TraceFormat, TraceOptions

pytestmark = pytest.mark.kvm

read, write, flush = BlockRequest.read, BlockRequest.write, BlockRequest.flush


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return DiskConfig(path, merge=MergePolicy.SORTED, rerror=ErrorPolicy.REPORT)


def run_batch(disk: DiskConfig, trace: TraceOptions) -> BareRun:
    """Reads and writes that merge, one past the end, and a flush, posted at once."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    sectors = [5, 3, 4, 100, 60, 61, 200, 1 << 20]
    requests = [read(sector, 512) for sector in sectors]
    requests += [write(sector, bytes(1024)) for sector in (8, 4, 6, 300)]
    driver.submit([*requests, flush()])
    return run_script(script, [disk], trace=trace)


def test_a_trace_has_the_events_that_statistics_count(tmp_path: Path, disk: DiskConfig) -> None:
    path = tmp_path / "trace"
    stats = run_batch(disk, TraceOptions(path)).disks[0]
    told: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        event = json.loads(line)
        told.setdefault(event["event"].removeprefix("virtio_blk."), []).append(event)
    for kind, prefix in (("read", "rd"), ("write", "wr")):
        done = [one for one in told["done"] if one["kind"] == kind]
        merges = [one for one in told["merge"] if one["kind"] == kind]
        assert sum(len(one["requests"]) - 1 for one in merges) == stats[f"{prefix}_merged"] > 0
        assert len(done) == stats[f"{prefix}_operations"]
        assert sum(one["length"] for one in done) == stats[f"{prefix}_bytes"]
        assert sum(one["took_ns"] for one in done) == stats[f"{prefix}_total_time_ns"]
    assert [(one["sector"], one["length"]) for one in told["merge"]] == [
        (3, 3 * 512),
        (60, 2 * 512),
        (4, 3 * 1024),
    ]
    assert len(told["refuse"]) == stats["invalid_rd_operations"] == 1
    answered = sorted(number for one in told["complete"] for number in one["requests"])
    assert answered == sorted(one["request"] for one in told["request"])
    assert [one["path"] for one in told["trace.disk"]] == [str(disk.path)]
    assert next(iter(told)) == "trace.begin"
    assert list(told)[-1] == "trace.end"


def test_a_failed_run_in_chromes_format(tmp_path: Path, disk: DiskConfig) -> None:
    """The bad sector's request, and the second attempts, as spans on tracks of one disk."""
    path = tmp_path / "trace"
    plan = FaultPlan([Fault(operation="read", sectors=4, errno="EIO")])
    options = TraceOptions(path, TraceFormat.CHROME)
    faulty = DiskConfig(disk.path, merge=disk.merge, rerror=disk.rerror, faults=plan)
    stats = run_batch(faulty, options).disks[0]
    elements = json.loads(path.read_text())
    requests = [one for one in elements if one.get("cat") == "request"]
    failed = [one["args"]["sector"] for one in requests if one["args"]["errno"]]
    assert failed == [4]
    count = stats["rd_operations"] + stats["wr_operations"] + stats["flush_operations"]
    assert len(requests) == count + stats["failed_rd_operations"]
    names = Counter(one["name"] for one in elements if one["ph"] == "i")
    assert (names["virtio_blk.retry"], names["virtio_blk.error"]) == (1, 1)
    assert {one["pid"] for one in requests} == {1}
