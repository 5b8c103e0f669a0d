"""Disks that are not served yet: the host lacks a resource, or the driver forgot a step."""

import errno
from pathlib import Path

import pytest
from bare_events import Log, guest, no_threads_left
from patience import PATIENCE

from pykvm.bare import BlockDriver, BlockRequest, Results, Script
from pykvm.devices.virtio_blk import Engine, Image, SyncEngine
from pykvm.machine import DiskConfig, Machine
from pykvm.machine.events import DiskHeld, HostShortage, Shutdown
from pykvm.memory.ram import Ram

pytestmark = pytest.mark.kvm

READY, NEEDS_RESET = 0xF, 0x40
LACK = "too many open files (ulimit -n)"


def test_a_disk_that_cannot_be_served_may_be_started_again(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * 4096)
    refusals = [OSError(errno.EMFILE, "Too many open files")] * 2

    def engine(image: Image, ram: Ram) -> Engine:
        if refusals:
            raise refusals.pop()
        return SyncEngine(image, ram)

    script = Script()
    driver = BlockDriver(script)
    states = [driver.start() for _ in range(3)]
    batch = driver.submit([BlockRequest.read(0, 512)])
    script.exit(0)
    disk = DiskConfig(path, engine=engine)
    config = guest("script", initrd=script.encode(), disks=[disk])
    with no_threads_left(), Machine(config) as machine:
        log = Log(machine)
        assert machine.run(PATIENCE).status == 0
        results = Results(machine.ram.read)
    assert [results[state] for state in states] == [READY | NEEDS_RESET] * 2 + [READY]
    (answer,) = batch.outcomes(results)
    assert (answer.status, answer.data) == (0, b"d" * 512)
    assert log.kinds == [HostShortage, HostShortage, Shutdown]
    assert {(event.device, event.lack) for event in log.events[:2]} == {("virtio0", LACK)}


def test_a_driver_that_forgets_bus_mastering_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    script = Script()
    driver = BlockDriver(script)
    script.pci_config(2 << 3, 0x04, 2, 2)  # memory decoding, and no more
    driver.start()
    script.exit(0)
    config = guest("script", initrd=script.encode(), disks=[path])
    with no_threads_left(), Machine(config) as machine:
        log = Log(machine)
        assert machine.run(PATIENCE).status == 0
    assert log.kinds == [DiskHeld, Shutdown]
