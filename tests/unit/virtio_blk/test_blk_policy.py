"""Error policies: the guest's answer, and the report, when the host cannot do a request."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from struct import pack

import pytest
from blk_bench import SECTORS, Bench, EngineScript, Faults, Maker, Short, benches
from blk_host import loop_device
from blk_ranges import segments

from pykvm.devices.virtio_blk import ErrorAction, ErrorPolicy, Image, IoError
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.core.operation import Operation

OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
NEW = b"n" * 1024
RANGES = {"discard": VIRTIO_BLK_T_DISCARD, "write-zeroes": VIRTIO_BLK_T_WRITE_ZEROES}
LOOP_SET_CAPACITY = 0x4C07
"""Looks at the size of the backing file again."""
STATS = {
    "read": "rd",
    "write": "wr",
    "flush": "flush",
    "discard": "unmap",
    "write-zeroes": "zero",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path) -> Iterator[Maker]:
    with benches(path) as maker:
        yield maker


def send(bench: Bench, kind: str) -> int:
    """A request of two sectors at 7, or a flush."""
    if kind in RANGES:
        return bench.send(RANGES[kind], data=segments((7, 2)))
    if kind == "flush":
        return bench.flush()
    return bench.read(7, 2) if kind == "read" else bench.write(7, NEW)


def options(kind: str, policy: ErrorPolicy) -> dict[str, ErrorPolicy]:
    """``policy`` where it should count, and elsewhere a policy whose use would show."""
    other = ErrorPolicy.REPORT if policy is ErrorPolicy.IGNORE else ErrorPolicy.IGNORE
    if kind == "read":
        return {"rerror": policy, "werror": other}
    return {"rerror": other, "werror": policy}


def action(policy: ErrorPolicy, error: int) -> ErrorAction:
    """The table of docs/reference/disk-options.md."""
    if policy is ErrorPolicy.ENOSPC:
        full = error in (errno.ENOSPC, errno.EDQUOT)
        return ErrorAction.STOP if full else ErrorAction.REPORT
    return ErrorAction(policy.value)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("policy", list(ErrorPolicy))
@pytest.mark.parametrize("kind", list(STATS))
def test_policy(
    make: Maker, path: Path, kind: str, policy: ErrorPolicy, error: int, slow: bool
) -> None:
    place = ("flush", 0) if kind == "flush" else (kind, 8)
    script = EngineScript(Faults({place: [error]}), slow=slow)
    bench = make(script, **options(kind, policy))
    head = send(bench, kind)
    bench.kick()
    if slow:
        script.wait_for(1)
        script.release()
    expected = action(policy, error)
    sector, length = (0, 0) if kind == "flush" else (7, 1024)
    assert bench.wait_errors(1) == [IoError(kind, sector, length, error, expected)]
    if expected is ErrorAction.STOP:
        bench.device.pause()
        assert bench.answered() == []
        assert bench.stats() == {}
        bench.device.resume()
        if slow:
            script.wait_for(1)
            script.release()
    status, data = bench.wait(head)
    assert status == (IOERR if expected is ErrorAction.REPORT else OK)
    succeeded = expected is ErrorAction.STOP
    if kind == "read":
        assert data == (b"o" if succeeded else b"\xaa") * 1024
    if kind == "write":
        assert path.read_bytes()[7 * 512 :][:1024] == (NEW if succeeded else b"o" * 1024)
    name = STATS[kind]
    counted = {f"{name}_operations": 1, f"{name}_bytes": 1024}
    if kind == "flush":
        del counted["flush_bytes"]
    assert bench.stats() == (counted if succeeded else {f"failed_{name}_operations": 1})
    assert len(bench.errors) == 1


@pytest.mark.parametrize(
    ("kind", "error", "expected"),
    [
        ("read", errno.ENOSPC, ErrorAction.REPORT),
        ("write", errno.EIO, ErrorAction.REPORT),
        ("write", errno.ENOSPC, ErrorAction.STOP),
        ("write", errno.EDQUOT, ErrorAction.STOP),
        ("flush", errno.ENOSPC, ErrorAction.STOP),
    ],
)
def test_defaults(make: Maker, kind: str, error: int, expected: ErrorAction) -> None:
    place = ("flush", 0) if kind == "flush" else (kind, 8)
    bench = make(EngineScript(Faults({place: [error]})))
    send(bench, kind)
    bench.kick()
    assert bench.wait_errors(1)[0].action is expected


@pytest.mark.parametrize("kind", ["read", "write"])
def test_the_end_of_a_truncated_file_is_eio(make: Maker, kind: str) -> None:
    """Nothing moved and no error: an engine need not explain, the device does."""
    bench = make(EngineScript(Faults({(kind, 8): [Short(512), Short(0)]})))
    head = send(bench, kind)
    bench.kick()
    assert bench.wait(head)[0] == IOERR
    assert bench.errors == [IoError(kind, 7, 1024, errno.EIO, ErrorAction.REPORT)]
    assert bench.script.log == [(kind, 7, 2), (kind, 8, 1)]


@pytest.mark.parametrize("kind", ["read", "write", "discard", "write-zeroes"])
def test_the_end_of_a_block_device_that_shrank_is_eio(make: Maker, path: Path, kind: str) -> None:
    """Linux says ENOSPC of a write there, and no space that anybody makes would help."""
    path.write_bytes(b"o" * 512 * SECTORS)
    with loop_device(path) as device:
        bench = Bench(Path(device), EngineScript(), werror=ErrorPolicy.ENOSPC)
        with bench:
            os.truncate(path, 4096)
            fcntl.ioctl(bench.device.image.fd, LOOP_SET_CAPACITY)
            heads = {sector: send_at(bench, kind, sector) for sector in (6, 7, 100)}
            bench.kick()
            answers = {sector: bench.wait(head)[0] for sector, head in heads.items()}
            # Discards are wishes: missing space is free already.
            beyond = OK if kind == "discard" else IOERR
            assert answers == {6: OK, 7: beyond, 100: beyond}
            assert {(error.errno, error.action, error.full) for error in bench.errors} <= {
                (errno.EIO, ErrorAction.REPORT, False)
            }


def send_at(bench: Bench, kind: str, sector: int) -> int:
    """A request of two sectors."""
    if kind in RANGES:
        return bench.send(RANGES[kind], data=segments((sector, 2)))
    return bench.read(sector, 2) if kind == "read" else bench.write(sector, NEW)


def test_a_block_device_without_space_is_not_one_that_shrank(tmp_path: Path) -> None:
    """Thin volumes say ENOSPC within their size, and there space helps."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(4096))
    with loop_device(backing) as device, closing(Image(device)) as image:
        assert image.cause(errno.ENOSPC, 4096) == errno.ENOSPC
        assert image.cause(errno.ENOSPC, 4608) == errno.EIO
        assert image.cause(errno.EREMOTEIO, 4608) == errno.EREMOTEIO


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("policy", [ErrorPolicy.ENOSPC, ErrorPolicy.STOP])
def test_a_sync_that_fails_for_lack_of_space_has_lost_data(
    make: Maker, monkeypatch: pytest.MonkeyPatch, error: int, policy: ErrorPolicy
) -> None:
    """No other attempt can succeed, so the guest does not stop for space; it does if told to."""

    def fdatasync(fd: int) -> None:
        raise OSError(error, "injected")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    bench = make(EngineScript(), werror=policy)
    head = bench.flush()
    bench.kick()
    (told,) = bench.wait_errors(1)
    assert (told.errno, told.lost, told.full) == (error, True, False)
    if policy is ErrorPolicy.STOP:
        assert told.action is ErrorAction.STOP
        return
    assert bench.wait(head)[0] == IOERR
    head = bench.flush()
    bench.kick()
    assert bench.wait(head)[0] == IOERR
    assert [(told.errno, told.lost) for told in bench.errors] == [(error, True), (errno.EIO, True)]


def test_a_request_in_pieces_fails_as_one(make: Maker) -> None:
    """Came short, continued, failed: announced and answered once, as the guest sent it."""
    bench = make(EngineScript(Faults({("write", 8): [Short(512), errno.EIO]})))
    head = send(bench, "write")
    bench.kick()
    assert bench.wait(head)[0] == IOERR
    assert bench.errors == [IoError("write", 7, 1024, errno.EIO, ErrorAction.REPORT)]
    assert bench.stats() == {"failed_wr_operations": 1}


def test_read_only_disks_have_policies_too(make: Maker) -> None:
    script = EngineScript(Faults({("read", 8): [errno.EIO]}))
    bench = make(script, readonly=True, rerror=ErrorPolicy.STOP, werror=ErrorPolicy.STOP)
    refused = send(bench, "write")
    head = send(bench, "read")
    bench.kick()
    assert bench.wait_errors(1) == [IoError("read", 7, 1024, errno.EIO, ErrorAction.STOP)]
    assert bench.wait(refused)[0] == IOERR
    bench.device.resume()
    assert bench.wait(head) == (OK, b"o" * 1024)
    assert len(bench.errors) == 1


@pytest.mark.parametrize("policy", [ErrorPolicy.STOP, ErrorPolicy.IGNORE])
def test_a_mistake_of_the_guest_is_no_error_of_the_host(
    make: Maker, path: Path, policy: ErrorPolicy
) -> None:
    """Out of range, malformed, unknown: answered at once, never announced, never ignored."""

    def never(operation: Operation) -> int:
        raise AssertionError("nothing of such a request is executed")

    bench = make(EngineScript(never), rerror=policy, werror=policy)
    driver = bench.transport.drivers[0]
    heads = {
        bench.read(SECTORS): IOERR,
        bench.read(SECTORS - 1, 2): IOERR,
        bench.read((1 << 64) - 1): IOERR,
        bench.write(SECTORS, NEW): IOERR,
        bench.write((1 << 55) - 1, NEW): IOERR,
        bench.write(0, b"x" * 100): IOERR,
        bench.send(VIRTIO_BLK_T_IN, 0, size=100): IOERR,
        driver.send([b"short"], [1]): IOERR,
        bench.send(77): VIRTIO_BLK_S_UNSUPP,
        bench.send(VIRTIO_BLK_T_OUT | 1 << 31, 0, NEW): VIRTIO_BLK_S_UNSUPP,
    }
    without_status = driver.send([pack("<IIQ", VIRTIO_BLK_T_OUT, 0, SECTORS)], [])
    bench.kick()
    assert {head: bench.wait(head)[0] for head in heads} == heads
    assert bench.transport.wait(without_status) == 0
    assert bench.wait(bench.send(VIRTIO_BLK_T_GET_ID, size=20))[0] == OK
    assert bench.errors == []
    assert path.read_bytes() == b"o" * 512 * SECTORS
    assert not any(name.startswith("failed") for name in bench.stats())
