"""The used length of every kind of answer: the bytes written without a gap (virtio 1.2 §2.7.8.2).

A driver may trust this number of bytes. The status is the last byte
that the device may write, so it counts only when all before it were written.
"""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from blk_bench import SECTORS, Bench, EngineScript, Faults, Maker, Short, benches, fill
from blk_ranges import DISCARD, segments
from blk_requests import IN, OUT

from pykvm.devices.virtio_blk import ErrorPolicy
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_GET_LIFETIME,
)
from pykvm.virtio.constants import VIRTQ_DESC_F_WRITE

OK, IOERR, UNSUPP = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP
EIO = errno.EIO
Answer = tuple[int, int]
"""(status, used length)."""


@pytest.fixture(params=["split", "packed", "packed in order"])
def kind_of_ring(request: pytest.FixtureRequest) -> dict[str, bool]:
    """Options of a disk with such rings."""
    return {"packed": "packed" in request.param, "in_order": "in order" in request.param}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path, kind_of_ring: dict[str, bool]) -> Iterator[Maker]:
    with benches(path, werror=ErrorPolicy.REPORT, **kind_of_ring) as maker:
        yield maker


def answers(bench: Bench, heads: list[int]) -> list[Answer]:
    """Those of requests in one drain."""
    bench.kick()
    used = {head: bench.transport.wait(head) for head in heads}
    return [(bench.transport.drivers[0].response(head)[-1], used[head]) for head in heads]


def test_used_length_of_a_success(make: Maker) -> None:
    bench = make(EngineScript(), lifetime=(1, 2, 3))
    heads = [
        bench.read(0, 3),
        bench.write(9, fill("a")),
        bench.flush(),
        bench.send(DISCARD, data=segments((0, 1))),
        bench.send(IN),
        bench.send(OUT),
        bench.send(VIRTIO_BLK_T_GET_ID, size=20),
        bench.send(VIRTIO_BLK_T_GET_ID, size=3),
        bench.send(VIRTIO_BLK_T_GET_ID, size=21),
        bench.send(VIRTIO_BLK_T_GET_LIFETIME, size=6),
        bench.send(VIRTIO_BLK_T_GET_LIFETIME, size=512),
    ]
    lengths = [1537, 1, 1, 1, 1, 1, 21, 4, 20, 7, 6]
    assert answers(bench, heads) == [(OK, length) for length in lengths]


def test_used_length_of_a_refused_request(make: Maker) -> None:
    """Its status is written, behind data that are not."""
    bench = make(EngineScript())
    heads = [
        bench.read(SECTORS),
        bench.write(SECTORS, fill("a")),
        bench.send(IN, size=511),
        bench.send(99, size=512),
        bench.send(99),
    ]
    expected = [(IOERR, 0), (IOERR, 1), (IOERR, 0), (UNSUPP, 0), (UNSUPP, 1)]
    assert answers(bench, heads) == expected


@pytest.mark.parametrize("policy", [ErrorPolicy.REPORT, ErrorPolicy.IGNORE])
def test_used_length_of_a_failure(make: Maker, policy: ErrorPolicy) -> None:
    """A failed read may have written anything, even if the policy hides the failure."""
    faults = {("read", 1): [EIO], ("write", 7): [EIO], ("flush", 0): [EIO]}
    bench = make(EngineScript(Faults(dict(faults))), rerror=policy, werror=policy)
    heads = [bench.read(sector) for sector in range(3)]
    heads += [bench.write(7, fill("a")), bench.flush()]
    told = OK if policy is ErrorPolicy.IGNORE else IOERR
    assert answers(bench, heads) == [(OK, 513), (told, 0), (OK, 513), (told, 1), (told, 1)]


def test_used_length_of_a_failure_behind_the_first_part(make: Maker) -> None:
    faults = {("read", 0): [Short(512)], ("read", 1): [EIO]}
    bench = make(EngineScript(Faults(dict(faults))))
    assert answers(bench, [bench.read(0, 4)]) == [(IOERR, 0)]


def test_used_length_beyond_the_end_of_a_disk_that_shrank(make: Maker) -> None:
    bench = make(EngineScript(Faults({("read", 9): [EIO]})), rerror=ErrorPolicy.STOP)
    heads = [bench.read(9), bench.write(9, fill("a")), bench.flush()]
    bench.kick()
    bench.wait_errors(1)
    assert bench.device.pause(10)
    bench.device.resize(4096)
    bench.device.resume()
    assert answers(bench, heads)[0] == (IOERR, 0)


def test_a_packed_ring_says_that_a_status_was_written(path: Path) -> None:
    """Though the used length is 0 (virtio 1.2 §2.8.4)."""
    with benches(path, packed=True) as make:
        bench = make(EngineScript())
        (answer,) = answers(bench, [bench.read(SECTORS)])
        assert answer == (IOERR, 0)
        driver = bench.transport.drivers[0]
        flags = int.from_bytes(driver.ram.read(driver.desc + 14, 2), "little")
        assert flags & VIRTQ_DESC_F_WRITE


def test_a_packed_ring_says_that_nothing_was_written(path: Path) -> None:
    with benches(path, packed=True) as make:
        bench = make(EngineScript())
        driver = bench.transport.drivers[0]
        head = driver.send([bytes(16)], [])
        bench.kick()
        assert bench.transport.wait(head) == 0
        flags = int.from_bytes(driver.ram.read(driver.desc + 14, 2), "little")
        assert not flags & VIRTQ_DESC_F_WRITE
