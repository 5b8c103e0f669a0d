"""The whole block device on a fake transport: real thread, real file, eventfds."""

import errno
import os
from pathlib import Path
from struct import pack, unpack_from

import pytest
from blk_device import (
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    SECTORS,
    UNSUPP,
    Disk,
    Maker,
    used_length,
)
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import DiskOptions
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
)
from pykvm.errors import UsageError
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
)

# -- the driver's view before it starts --------------------------------


def test_features(make_disk: Maker) -> None:
    disk = make_disk(start=False)
    ring = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_RING_RESET
    ring |= disk.transport.features & VIRTIO_F_RING_PACKED
    own = VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH
    own |= VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_TOPOLOGY
    own |= VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES
    assert disk.device.features == ring | own
    assert disk.device.device_id == 2
    assert disk.device.negotiated(0)


def test_a_read_only_disk_says_so(make_disk: Maker) -> None:
    assert make_disk(readonly=True, start=False).device.features & VIRTIO_BLK_F_RO


def test_configuration(make_disk: Maker) -> None:
    device = make_disk(start=False, queue_size=128).device
    assert device.queue_sizes == (128,)
    config = device.config
    assert len(config) == 72
    assert unpack_from("<Q", config, 0) == (SECTORS,)
    assert unpack_from("<I", config, 12) == (126,)
    assert unpack_from("<I", config, 20) == (512,)
    device.write_config(0, 8, 5)
    assert device.config is config


@pytest.mark.parametrize("serial", ["x" * 21, "ü", "a\nb", "a\0"])
def test_an_impossible_serial_is_refused(serial: str) -> None:
    with pytest.raises(UsageError, match="serial"):
        DiskOptions(serial=serial)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 2048, -4])
def test_an_impossible_queue_size_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="queue-size"):
        DiskOptions(queue_size=size)


# -- requests --------------------------------------------------------------


def test_read(disk: Disk, disk_path: Path) -> None:
    file = disk_path.read_bytes()
    assert disk.do(IN, 0, size=512) == (OK, file[:512])
    assert disk.do(IN, 8, size=4096) == (OK, file[4096:8192])
    assert disk.do(IN, SECTORS - 1, size=512) == (OK, file[-512:])


def test_write_then_read_back(disk: Disk, disk_path: Path) -> None:
    before = disk_path.read_bytes()
    data = os.urandom(1024)
    assert disk.do(OUT, 3, data) == (OK, b"")
    assert disk.do(FLUSH) == (OK, b"")
    assert disk.do(IN, 2, size=2048)[1] == before[1024:1536] + data + before[2560:3072]
    assert disk_path.read_bytes() == before[:1536] + data + before[2560:]


def test_get_id(disk: Disk) -> None:
    assert disk.do(GET_ID, size=20) == (OK, b"pykvm-1".ljust(20, b"\0"))


def test_out_of_range(disk: Disk, disk_path: Path) -> None:
    before = disk_path.read_bytes()
    assert disk.do(IN, SECTORS, size=512)[0] == IOERR
    assert disk.do(OUT, SECTORS - 1, bytes(1024))[0] == IOERR
    assert disk.do(OUT, (1 << 64) - 1, bytes(512))[0] == IOERR
    assert disk_path.read_bytes() == before


def test_unknown_type(disk: Disk) -> None:
    assert disk.do(14)[0] == UNSUPP


def test_a_read_only_disk(make_disk: Maker, disk_path: Path) -> None:
    disk = make_disk(readonly=True)
    before = disk_path.read_bytes(), disk_path.stat().st_mtime_ns
    assert disk.do(OUT, 0, bytes(512))[0] == IOERR
    assert disk.do(FLUSH)[0] == OK
    assert disk.do(IN, 0, size=512) == (OK, before[0][:512])
    assert (disk_path.read_bytes(), disk_path.stat().st_mtime_ns) == before


def test_a_request_without_a_status_byte_is_given_back(disk: Disk) -> None:
    driver = disk.transport.drivers[0]
    head = driver.send([pack("<IIQ", IN, 0, 0)], [])
    assert disk.transport.wait(head) == 0
    assert disk.do(IN, 0, size=512)[0] == OK


def test_an_image_truncated_under_the_device(disk: Disk, disk_path: Path) -> None:
    os.truncate(disk_path, 4096)
    assert disk.do(IN, 8, size=512)[0] == IOERR
    assert disk.do(IN, 0, size=512)[0] == OK
    assert disk.stats()["failed_rd_operations"] == 1


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", [IN, OUT, FLUSH])
def test_a_host_error_is_the_guests_ioerr(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    def failing(*args: object) -> int:
        raise OSError(errno.EIO, "injected")

    for name in ("preadv", "pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, failing)
    assert (
        disk.do(kind, 0, bytes(512) if kind == OUT else b"", 512 if kind == IN else 0)[0] == IOERR
    )
    assert sum(disk.stats().values()) == 1


@pytest.mark.parametrize(
    "features", [0, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_BLK_F_FLUSH]
)
def test_every_negotiation_works(make_disk: Maker, disk_path: Path, features: int) -> None:
    disk = make_disk(features=features | VIRTIO_F_VERSION_1)
    assert disk.do(OUT, 5, b"y" * 512)[0] == OK
    assert disk.do(IN, 5, size=512) == (OK, b"y" * 512)
    assert disk.do(FLUSH)[0] == OK


@pytest.mark.parametrize(("features", "syncs"), [(0, 1), (VIRTIO_BLK_F_FLUSH, 0)])
def test_a_driver_without_flush_gets_write_through(
    make_disk: Maker, monkeypatch: pytest.MonkeyPatch, features: int, syncs: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    disk = make_disk(features=features | VIRTIO_F_VERSION_1)
    assert disk.do(OUT, 0, bytes(512))[0] == OK
    assert len(synced) == syncs


item = st.tuples(
    st.sampled_from([IN, IN, OUT, OUT, FLUSH, GET_ID, 77]),
    st.integers(0, SECTORS + 2),
    st.integers(1, 6),
)


@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(item, min_size=1, max_size=12), max_size=5))
def test_batches_do_what_a_model_disk_does(
    disk: Disk, disk_path: Path, batches: list[list[tuple[int, int, int]]]
) -> None:
    """Whatever is sent in whatever batches: same bytes, statuses and lengths as one at a time."""
    model = bytearray(disk_path.read_bytes())
    fill = 0
    for batch in batches:
        expected = []
        for kind, sector, count in batch:
            span = slice(sector * 512, (sector + count) * 512)
            inside = sector + count <= SECTORS
            if kind == OUT:
                fill += 1
                data = bytes([fill % 256]) * (count * 512)
                answer = (OK if inside else IOERR, b"")
                if inside:
                    model[span] = data
                head = disk.send(OUT, sector, data)
            elif kind == IN:
                answer = (OK, bytes(model[span])) if inside else (IOERR, b"\xaa" * 512 * count)
                head = disk.send(IN, sector, size=512 * count)
            else:
                answer = ({77: UNSUPP, GET_ID: IOERR}.get(kind, OK), b"")
                head = disk.send(kind, sector)
            expected.append((head, *answer))
        answers = {head: disk.wait(head) for head, _, _ in expected}
        for head, status, data in expected:
            assert answers[head] == (status, data, used_length(IN, status, data))
    assert disk_path.read_bytes() == model


# -- statistics -------------------------------------------------------------


def test_statistics(disk: Disk) -> None:
    disk.do(IN, 0, size=1024)
    disk.do(IN, 0, size=512)
    disk.do(OUT, 0, bytes(2048))
    disk.do(FLUSH)
    disk.do(GET_ID, size=20)
    disk.do(IN, SECTORS, size=512)
    disk.do(OUT, SECTORS, bytes(512))
    disk.do(99)
    stats = disk.stats()
    for name in ("rd", "wr", "flush"):
        assert stats.pop(f"{name}_total_time_ns") > 0
    assert stats == {
        "rd_bytes": 1536,
        "rd_operations": 2,
        "wr_bytes": 2048,
        "wr_operations": 1,
        "flush_operations": 1,
        "invalid_rd_operations": 1,
        "invalid_wr_operations": 1,
        "invalid_other_operations": 1,
    }
    assert {"rd_merged", "wr_merged"} <= disk.device.stats.as_dict().keys()
