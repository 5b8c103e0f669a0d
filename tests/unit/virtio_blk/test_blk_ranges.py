"""DISCARD, WRITE_ZEROES and GET_LIFETIME from a driver's side: their effects, and refusals.

The inputs that a device must survive, and their tests:

=========================================================  ===================================
data of no segment, of a part of one, of too many           test_malformed_data
a range past the end, or whose end wraps; a huge one        test_impossible_ranges_are_refused
a bad range beside good ones; a flag beside a bad range     test_one_bad_range_refuses_them_all,
                                                            test_a_bad_flag_comes_before_a_bad_range
unknown flags; unmap on a discard                           test_flags
segments split over descriptors, or not in guest RAM        test_segments_may_be_cut_anywhere,
                                                            test_segments_outside_guest_ram
a range that is not of whole blocks                         test_blocks_of_4096_bytes
a request whose feature was not negotiated                  test_requests_without_their_feature
a request whose feature is not offered (read-only disk)     test_a_read_only_disk_offers_neither
memory that changes under the reader                        test_blk_range_order.py
no place for the status                                     test_a_request_without_a_status
a buffer for GET_LIFETIME of the wrong size                 test_lifetime
any bytes at all                                            test_any_segments
=========================================================  ===================================
"""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from struct import pack

import pytest
from blk_device import IOERR, OK, OUT, SECTORS, SIZE, UNSUPP, Disk, Maker, disk_file, disks
from blk_ranges import DISCARD, UNMAP, ZEROES, Segment, segments
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import DiscardMode
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_T_GET_LIFETIME,
)
from pykvm.devices.virtio_blk.core.ranges import MAX_RANGES, MAX_SECTORS, read_ranges
from pykvm.testing.split_driver import Buffer

CONTENT = random.Random(1).randbytes(SIZE)
BOTH = pytest.mark.parametrize("kind", [DISCARD, ZEROES], ids=["discard", "zeroes"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return disk_file(tmp_path)


@pytest.fixture
def make(path: Path) -> Iterator[Maker]:
    with disks(path) as maker:
        yield maker


@pytest.fixture
def disk(make: Maker) -> Disk:
    return make()


def zeroed(*parts: tuple[int, int]) -> bytes:
    """CONTENT with these sectors (first, count) made zeros."""
    disk = bytearray(CONTENT)
    for sector, count in parts:
        disk[sector * 512 : (sector + count) * 512] = bytes(count * 512)
    return bytes(disk)


# -- effects ------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, UNMAP])
def test_zeroes(disk: Disk, path: Path, flags: int) -> None:
    assert disk.do(ZEROES, data=segments((3, 9, flags), (40, 1))) == (OK, b"")
    assert path.read_bytes() == zeroed((3, 9), (40, 1))
    assert disk.stats()["zero_bytes"] == 5120
    assert disk.stats()["zero_operations"] == 1


def test_a_discard_frees_space(disk: Disk, path: Path) -> None:
    before = path.stat().st_blocks
    assert disk.do(DISCARD, data=segments((8, 8), (32, 16))) == (OK, b"")
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks <= before - 24
    assert path.read_bytes() == zeroed((8, 8), (32, 16))
    counts = disk.stats()
    assert counts.pop("unmap_total_time_ns") > 0
    assert counts == {"unmap_bytes": 24 * 512, "unmap_operations": 1}


@pytest.mark.parametrize("unmap", [True, False])
def test_zeroes_free_space_only_if_they_may(disk: Disk, path: Path, unmap: bool) -> None:
    before = path.stat().st_blocks
    assert disk.do(ZEROES, data=segments((8, 8, UNMAP if unmap else 0)))[0] == OK
    assert (path.stat().st_blocks < before) == unmap
    assert path.read_bytes() == zeroed((8, 8))


@BOTH
def test_as_many_ranges_as_are_allowed_and_overlapping_ones(
    disk: Disk, path: Path, kind: int
) -> None:
    parts = [(sector, 2) for sector in range(MAX_RANGES)]
    assert disk.do(kind, data=segments(*parts))[0] == OK
    if kind == ZEROES:
        assert path.read_bytes() == zeroed((0, MAX_RANGES + 1))


@BOTH
def test_empty_ranges_do_nothing(disk: Disk, path: Path, kind: int) -> None:
    assert disk.do(kind, data=segments((0, 0), (SECTORS, 0))) == (OK, b"")
    assert path.read_bytes() == CONTENT
    assert sum(disk.stats().values()) == 1
    assert disk.do(kind, data=segments((9, 0), (SECTORS - 1, 1)))[0] == OK


def test_discards_that_are_ignored(make: Maker, path: Path) -> None:
    disk = make(discard=DiscardMode.IGNORE)
    before = path.stat().st_blocks
    assert disk.do(DISCARD, data=segments((0, 8)))[0] == OK
    assert disk.do(DISCARD, data=segments((0, SECTORS + 1)))[0] == IOERR
    assert path.read_bytes() == CONTENT
    assert disk.do(ZEROES, data=segments((8, 8, UNMAP)))[0] == OK
    assert path.read_bytes() == zeroed((8, 8))
    assert path.stat().st_blocks == before
    counts = disk.stats()
    assert (counts["unmap_operations"], counts["invalid_unmap_operations"]) == (1, 1)


@BOTH
def test_device_writable_data(disk: Disk, path: Path, kind: int) -> None:
    head = disk.send(kind, data=segments((0, 1)), size=64)
    assert disk.wait(head) == (IOERR, b"\xaa" * 64, 0)
    assert path.read_bytes() == CONTENT


# -- refusals ---------------------------------------------------------


@BOTH
@pytest.mark.parametrize("length", [0, 1, 15, 17, 31, 16 * MAX_RANGES + 16])
def test_malformed_data(disk: Disk, path: Path, kind: int, length: int) -> None:
    data = segments((0, 1)) * (MAX_RANGES + 1)
    assert disk.do(kind, data=data[:length]) == (IOERR, b"")
    assert path.read_bytes() == CONTENT
    name = "invalid_unmap_operations" if kind == DISCARD else "invalid_zero_operations"
    assert disk.stats() == {name: 1}


@BOTH
@pytest.mark.parametrize(
    ("sector", "count"),
    [
        (SECTORS, 1),
        (SECTORS - 1, 2),
        (SECTORS + 1, 0),
        (0, SECTORS + 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 0),
        ((1 << 64) - 8, 8),
        (1 << 63, 1),
        (1 << 55, 1),
        (0, (1 << 32) - 1),
        (0, MAX_SECTORS + 1),
    ],
)
def test_impossible_ranges_are_refused(
    disk: Disk, path: Path, kind: int, sector: int, count: int
) -> None:
    assert disk.do(kind, data=segments((sector, count))) == (IOERR, b"")
    assert disk.do(kind, data=segments((SECTORS - 1, 1)))[0] == OK
    assert path.read_bytes()[:-512] == CONTENT[:-512]


@BOTH
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_range_refuses_them_all(disk: Disk, path: Path, kind: int, place: int) -> None:
    parts = [(0, 1), (8, 1)]
    parts.insert(place, (SECTORS, 1))
    assert disk.do(kind, data=segments(*parts))[0] == IOERR
    assert path.read_bytes() == CONTENT


@BOTH
@pytest.mark.parametrize("flags", [2, 1 << 31, 3, 0xFFFFFFFF, UNMAP])
def test_flags(disk: Disk, path: Path, kind: int, flags: int) -> None:
    fine = kind == ZEROES and flags == UNMAP
    assert disk.do(kind, data=segments((0, 1), (4, 1, flags)))[0] == (OK if fine else UNSUPP)
    assert (path.read_bytes() == CONTENT) != fine


@BOTH
def test_a_bad_flag_comes_before_a_bad_range(disk: Disk, kind: int) -> None:
    """An unknown flag may have changed the meaning of the range."""
    assert disk.do(kind, data=segments((SECTORS, 9), (0, 1, 4)))[0] == UNSUPP


@BOTH
def test_requests_without_their_feature(make: Maker, path: Path, kind: int) -> None:
    other = VIRTIO_BLK_F_WRITE_ZEROES if kind == DISCARD else VIRTIO_BLK_F_DISCARD
    disk = make(features=other)
    assert disk.do(kind, data=segments((0, 1)))[0] == UNSUPP
    assert path.read_bytes() == CONTENT
    assert disk.do(DISCARD + ZEROES - kind, data=segments((0, 8)))[0] == OK


@BOTH
def test_a_read_only_disk_offers_neither(make: Maker, path: Path, kind: int) -> None:
    disk = make(readonly=True)
    assert not disk.device.features & (VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES)
    assert disk.do(kind, data=segments((0, 1)))[0] == UNSUPP
    assert path.read_bytes() == CONTENT


@BOTH
def test_a_disk_without_discards_and_zeroes(make: Maker, path: Path, kind: int) -> None:
    disk = make(discard=DiscardMode.OFF, write_zeroes=False)
    assert not disk.device.features & (VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES)
    assert disk.do(kind, data=segments((0, 1)))[0] == UNSUPP
    assert path.read_bytes() == CONTENT


@BOTH
def test_blocks_of_4096_bytes(make: Maker, path: Path, kind: int) -> None:
    disk = make(logical_block_size=4096)
    for part in ((4, 8), (8, 4), (0, 1)):
        assert disk.do(kind, data=segments((0, 8), part))[0] == IOERR
    assert path.read_bytes() == CONTENT
    assert disk.do(kind, data=segments((8, 16)))[0] == OK
    assert path.read_bytes() == zeroed((8, 16))


@BOTH
def test_a_request_without_a_status(disk: Disk, path: Path, kind: int) -> None:
    driver = disk.transport.drivers[0]
    head = driver.send([pack("<IIQ", kind, 0, 0), segments((0, 1))], [])
    assert disk.transport.wait(head) == 0
    assert path.read_bytes() == CONTENT


# -- framing -----------------------------------------------------------------


@BOTH
@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 47), max_size=5))
def test_segments_may_be_cut_anywhere(disk: Disk, path: Path, kind: int, cuts: list[int]) -> None:
    path.write_bytes(CONTENT)
    stream = pack("<IIQ", kind, 0, 0) + segments((8, 8), (24, 8))
    places = [0, *sorted(set(cuts)), len(stream)]
    readable = [stream[a:b] for a, b in pairwise(places)]
    head = disk.transport.drivers[0].send(readable, [1])
    assert disk.wait(head)[0] == OK
    assert path.read_bytes() == zeroed((8, 8), (24, 8))


@BOTH
def test_segments_outside_guest_ram(disk: Disk, path: Path, kind: int) -> None:
    driver = disk.transport.drivers[0]
    header = Buffer(driver.put(pack("<IIQ", kind, 0, 0)), 16, False)
    good = Buffer(driver.put(segments((0, 1))), 16, False)
    status = Buffer(driver.put(b"\xaa"), 1, True)
    bad = Buffer(1 << 40, 16, False)
    for parts in ([bad], [good, bad], [bad, good]):
        head = driver.add([header, *parts, status])
        assert disk.wait(head) == (IOERR, b"", 1)
    assert path.read_bytes() == CONTENT


# -- lifetime ----------------------------------------------------------------


def test_lifetime_needs_room(make: Maker) -> None:
    disk = make(lifetime=(1, 11, 3))
    assert disk.do(VIRTIO_BLK_T_GET_LIFETIME) == (IOERR, b"")
    assert disk.do(VIRTIO_BLK_T_GET_LIFETIME, data=b"x", size=6) == (IOERR, b"\xaa" * 6)
    assert disk.stats() == {"invalid_other_operations": 2}


@pytest.mark.parametrize("size", [6, 2, 20])
def test_lifetime(make: Maker, size: int) -> None:
    disk = make(lifetime=(1, 11, 3))
    status, answer, used = disk.wait(disk.send(VIRTIO_BLK_T_GET_LIFETIME, size=size))
    assert (status, used) == (OK, size + 1 if size <= 6 else 6)
    assert answer[:6] == pack("<3H", 1, 11, 3)[:size]
    assert answer[6:] == b"\xaa" * (size - 6)
    assert disk.stats() == {}


@pytest.mark.parametrize("options", [{}, {"lifetime": (0, 0, 0), "features": 0}])
def test_a_disk_without_a_lifetime(make: Maker, options: dict[str, object]) -> None:
    assert make(**options).do(VIRTIO_BLK_T_GET_LIFETIME, size=6)[0] == UNSUPP


# -- any bytes ---------------------------------------------------------------

_edges = st.sampled_from([0, 1, SECTORS - 1, SECTORS, SECTORS + 1, (1 << 64) - 1, 1 << 55])
_parts = st.tuples(
    st.one_of(st.integers(0, SECTORS), _edges, st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 9), st.integers(0, (1 << 32) - 1)),
    st.sampled_from([0, 0, 0, 0, UNMAP, UNMAP, 2, 0xFFFFFFFF]),
)


@given(st.lists(_parts, max_size=6), st.booleans(), st.booleans(), st.sampled_from([1, 8]))
def test_any_segments(parts: list[Segment], discard: bool, unmaps: bool, block: int) -> None:
    """The answer and every extent follow from the words of the specification."""
    found = read_ranges(segments(*parts), discard, unmaps, SECTORS, block)
    if any(flags not in ((0,) if discard else (0, UNMAP)) for _, _, flags in parts):
        assert found.status == UNSUPP
    elif any(
        sector + count > SECTORS or sector % block or count % block for sector, count, _ in parts
    ):
        assert found.status == IOERR
    else:
        assert found.status == OK
        expected = [
            (sector * 512, count * 512, int(unmaps and (discard or flags == UNMAP)))
            for sector, count, flags in parts
            if count
        ]
        flat = list(found.extents)
        assert list(zip(flat[::3], flat[1::3], flat[2::3], strict=True)) == expected
        assert found.length == sum(length for _, length, _ in expected)
        return
    assert not list(found.extents)


def test_the_longest_range() -> None:
    capacity = 1 << 40
    for count, status in ((MAX_SECTORS, OK), (MAX_SECTORS + 1, IOERR), ((1 << 32) - 1, IOERR)):
        assert read_ranges(segments((8, count)), True, True, capacity, 1).status == status


def test_a_write_behind_the_ranges_is_not_touched(disk: Disk, path: Path) -> None:
    assert disk.do(OUT, 9, b"n" * 512)[0] == OK
    assert disk.do(ZEROES, data=segments((8, 1), (10, 1)))[0] == OK
    assert path.read_bytes()[4096:5632] == bytes(512) + b"n" * 512 + bytes(512)
