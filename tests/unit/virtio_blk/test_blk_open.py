"""A disk that is opened without a machine: from its options to a device on any transport."""

import os
from pathlib import Path
from typing import Any

import pytest
from blk_device import FLUSH, IN, IOERR, OK, OUT, SIZE, Disk, device_threads, disk_file

from pykvm.devices.virtio_blk.hooks import DeviceHooks, IoError
from pykvm.devices.virtio_blk.layers.faults import Fault
from pykvm.devices.virtio_blk.modes import ErrorAction
from pykvm.devices.virtio_blk.observe.tracing import DiskTrace
from pykvm.devices.virtio_blk.open import DiskConfig, OpenDisk, open_disk
from pykvm.errors import UsageError
from pykvm.machine.config import MachineConfig
from pykvm.testing.fake_transport import FakeTransport
from pykvm.trace import events
from pykvm.trace.events import Fields

SECTOR = b"n" * 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return disk_file(tmp_path)


def started(opened: OpenDisk, transport: FakeTransport) -> Disk:
    transport.start()
    return Disk(transport, opened.device)


def test_an_opened_disk_serves_a_driver_and_closes_everything(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    content = path.read_bytes()
    with (
        open_disk(DiskConfig(path, engine="threads", num_queues=2)) as opened,
        FakeTransport(opened.device) as transport,
    ):
        disk = started(opened, transport)
        assert disk.do(IN, 3, size=512) == (OK, content[1536:2048])
        assert disk.do(OUT, 3, SECTOR) == (OK, b"")
        assert disk.do(FLUSH) == (OK, b"")
        assert opened.engine == "threads, as asked"
        assert opened.image.size == SIZE
    assert path.read_bytes() == content[:1536] + SECTOR + content[2048:]
    assert device_threads() == []
    assert os.listdir("/proc/self/fd") == before
    opened.close()


def test_a_snapshot_with_a_bad_sector_keeps_the_image_and_reports_the_error(path: Path) -> None:
    content = path.read_bytes()
    errors: list[IoError] = []
    config = DiskConfig(
        path, snapshot=True, faults=[Fault(operation="read", sectors=7, errno="EIO")]
    )
    with (
        open_disk(config, DeviceHooks(on_error=errors.append)) as opened,
        FakeTransport(opened.device) as transport,
    ):
        disk = started(opened, transport)
        assert disk.do(OUT, 3, SECTOR) == (OK, b"")
        assert disk.do(IN, 3, size=512) == (OK, SECTOR)
        assert disk.do(IN, 7, size=512)[0] == IOERR
    assert path.read_bytes() == content
    assert [(error.sector, error.action) for error in errors] == [(7, ErrorAction.REPORT)]


def test_a_trace_begins_with_the_disk(path: Path) -> None:
    class Recorded:
        def __init__(self) -> None:
            self.events: list[tuple[str, Fields]] = []

        def wants(self, event: str) -> bool:
            return True

        def record(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> None:
            self.events.append((event, fields))

    sink = Recorded()
    with open_disk(DiskConfig(path, readonly=True), trace=DiskTrace(sink, "virtio0")):
        pass
    fields = {"path": str(path), "sectors": SIZE // 512, "readonly": True}
    assert sink.events[0] == (events.DISK, fields)


def test_a_disk_that_cannot_be_opened_leaves_nothing_open(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    os.truncate(path, SIZE + 512)
    with pytest.raises(UsageError, match="logical blocks of 4096 bytes"):
        open_disk(DiskConfig(path, logical_block_size=4096))
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(UsageError, match="cannot be opened"):
        open_disk(DiskConfig(path.with_name("missing")))


def test_a_blank_disk_begins_with_zeros_and_is_dropped(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(2):
        with (
            open_disk(DiskConfig(blank="1M")) as opened,
            FakeTransport(opened.device) as transport,
        ):
            disk = started(opened, transport)
            assert opened.image.size == 1 << 20
            assert disk.do(IN, 2047, size=512) == (OK, bytes(512))
            assert disk.do(OUT, 3, SECTOR) == (OK, b"")
            assert disk.do(FLUSH) == (OK, b"")
            assert disk.do(IN, 2, size=1536) == (OK, bytes(512) + SECTOR + bytes(512))
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "a disk needs an image"),
        ({"blank": "64M", "path": "x"}, "a blank disk has no path"),
        ({"blank": "64M", "readonly": True}, "a blank disk has no readonly"),
        ({"blank": "64M", "snapshot": True}, "a blank disk has no snapshot"),
        ({"blank": "64M", "format": "raw"}, "a blank disk has no format"),
        ({"blank": "64M", "cache": "none"}, "a blank disk has no cache"),
        ({"blank": 1000}, "a blank disk cannot have 1000 bytes"),
        ({"blank": -512}, "a blank disk cannot have -512 bytes"),
        ({"blank": 1 << 61}, "a blank disk cannot have"),
        ({"blank": "many"}, "blank cannot be 'many'"),
    ],
)
def test_a_blank_disk_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DiskConfig(**fields)


def test_a_size_among_the_disks_of_a_machine_is_a_blank_disk() -> None:
    sizes = MachineConfig(guest="guest", disks=["64M", "1g", "./64M", "64", Path("64M")]).disks
    assert [one.blank for one in sizes] == [64 << 20, 1 << 30, 0, 0, 0]
    assert [one.name for one in sizes] == ["blank=67108864", "blank=1073741824", "64M", "64", "64M"]
