"""The script of pykvm bench, run by the bare guest in a machine of the test."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from patience import patience

from pykvm.bare import build_bare_guest
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bare.tsc import host_tsc_khz
from pykvm.bench.disk.script import MARK, OPEN, LoadScript
from pykvm.bench.disk.workload import Shapes, parse_workloads
from pykvm.devices.virtio_blk import CacheMode, Image, SyncEngine
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.memory import Ram

pytestmark = pytest.mark.kvm


class Witness(SyncEngine):
    """Records for each write whether it must be durable."""

    def __init__(self, image: Image, ram: Ram, seen: set[bool]) -> None:
        super().__init__(image, ram)
        self._seen = seen

    def submit(self, operations: Sequence[Operation]) -> None:
        """See Engine."""
        self._seen |= {operation.durable for operation in operations}
        super().submit(operations)


def config(disk: Path, script: LoadScript, cache: CacheMode, seen: set[bool]) -> MachineConfig:
    """A machine that runs ``script``, with a witness."""
    return MachineConfig(
        kernel=build_bare_guest(),
        append="script",
        initrd=script.initrd,
        memory=MEMORY_NEEDED,
        disks=[DiskConfig(disk, cache=cache, engine=partial(Witness, seen=seen))],
    )


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.WRITETHROUGH])
def test_the_guest_keeps_the_cache_mode_that_is_measured(tmp_path: Path, cache: CacheMode):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    script = LoadScript(
        parse_workloads(["seqwrite"], Shapes([2])),
        span=2048,
        seconds=1,
        requests=40,
        tsc_khz=host_tsc_khz(),
    )
    durable: set[bool] = set()
    with Machine(config(disk, script, cache, durable)) as machine:
        for gate in script.gates:
            machine.ram.write(gate, OPEN)
        machine.run(timeout=patience())
        loads = script.results(machine.ram.read)
        (statistics,) = machine.statistics()["disks"]
        lines = bytes(machine.console_output).splitlines()
    assert durable == {not cache.writeback}
    assert [load.completed for load in loads] == [40]
    assert statistics["wr_operations"] == 40
    assert lines == [MARK + b"%d" % number for number in (-1, 0, 1)]
    data = disk.read_bytes()
    assert all(any(data[at : at + 4096]) for at in range(0, 40 * 4096, 4096))
    assert not any(data[40 * 4096 :])
