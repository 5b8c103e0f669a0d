"""An engine that executes one by one: a halt precedes the next operation, or follows few reads."""

import errno
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest
from blk_bench import SECTORS, fill
from blk_device import IN, OK, OUT, disks
from patience import ends, goes_on, in_thread, patience, until

from pykvm.devices.virtio_blk import ErrorPolicy, IoError, MergePolicy, SyncEngine
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.devices.virtio_blk.serving.queue_service import HELD_NS, MOST_READS

FULL = errno.ENOSPC


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def test_a_pause_waits_for_one_operation_and_not_for_its_batch(path: Path) -> None:
    """Operations that have not started at the moment of the pause start after the resume."""
    path.write_bytes(fill("o") * SECTORS)
    started: list[int] = []
    begun, go_on = Event(), Event()

    class Slow(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            for operation in operations:
                started.append(operation.offset // 512)
                begun.set()
                assert go_on.wait(patience())
                super().submit([operation])

    with disks(path) as make:
        disk = make(engine=Slow, merge=MergePolicy.OFF)
        heads = [disk.send(IN, sector, size=512) for sector in range(9)]
        disk.transport.submit()
        assert begun.wait(patience())
        pausing = in_thread(disk.device.pause)
        until(lambda: disk.device._threads._threads[0]._halting)
        assert goes_on(pausing)
        go_on.set()
        assert ends(pausing)
        assert started == [0]
        assert [head for head, _ in disk.transport.collect()] == [heads[0]]
        disk.device.resume()
        assert [disk.wait(head)[0] for head in heads[1:]] == [OK] * 8
        assert started == [*range(9)]


@pytest.mark.parametrize("faults", [False, True])
def test_operations_behind_an_error_that_stops_do_not_start(path: Path, faults: bool) -> None:
    """Neither with the plain engine nor with one that injects faults."""
    path.write_bytes(fill("o") * SECTORS)
    errors: list[IoError] = []
    plan = FaultPlan([Fault(operation="write", sectors=2, errno="ENOSPC", count=1)])

    class Full(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            if operations[0].offset == 1024 and not errors:
                operations[0].error = FULL
                self._done.extend(operations)
            else:
                super().submit(operations)

    with disks(path) as make:
        disk = make(
            engine=plan.wrap() if faults else Full,
            merge=MergePolicy.OFF,
            werror=ErrorPolicy.STOP,
            on_error=errors.append,
        )
        heads = [disk.send(OUT, sector, fill("n")) for sector in range(5)]
        disk.transport.submit()
        until(lambda: errors)
        assert disk.device.pause(patience())
        assert [head for head, _ in disk.transport.collect()] == heads[:2]
        assert path.read_bytes()[:2560] == fill("n") * 2 + fill("o") * 3
        disk.device.resume()
        assert [disk.wait(head)[0] for head in heads[2:]] == [OK] * 3
        assert path.read_bytes()[:2560] == fill("n") * 5


def test_writes_are_submitted_singly_and_reads_in_small_groups(path: Path) -> None:
    """Even on a quick disk, the halt after a write's error comes before the next operation."""
    path.write_bytes(fill("o") * SECTORS)
    given: list[list[int]] = []

    class Noting(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            given.append([operation.kind for operation in operations])
            super().submit(operations)

    with disks(path) as make:
        disk = make(engine=Noting, merge=MergePolicy.OFF)
        for _ in range(4):
            heads = [disk.send(IN, sector, size=512) for sector in range(20)]
            heads.append(disk.send(OUT, 30, fill("n")))
            heads += [disk.send(IN, sector, size=512) for sector in range(20)]
            disk.transport.submit()
            assert [disk.wait(head)[0] for head in heads] == [OK] * 41
    assert sum(map(len, given)) == 4 * 41
    assert given.count([1]) == 4
    assert all(1 not in kinds for kinds in given if kinds != [1])
    assert max(map(len, given)) <= MOST_READS


def test_a_long_batch_does_not_hold_its_first_results_back(path: Path) -> None:
    """The driver gets each while the next is executed, if that takes some time."""
    path.write_bytes(fill("o") * SECTORS)
    seen: list[list[int]] = []

    class Slow(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            super().submit(operations)
            end = time.monotonic_ns() + HELD_NS
            while time.monotonic_ns() < end:
                pass
            seen.append([head for head, _ in disk.transport.collect()])

    with disks(path) as make:
        disk = make(engine=Slow, merge=MergePolicy.OFF)
        heads = [disk.send(OUT, sector, fill("n")) for sector in range(5)]
        disk.transport.submit()
        until(lambda: len(seen) == 5)
        assert seen == [[], *([head] for head in heads[:4])]
        assert disk.wait(heads[4])[0] == OK
