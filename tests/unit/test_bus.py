"""The I/O bus finds exactly the device that owns every byte of an access."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus


class Recorder:
    """A device that answers with a fixed value and notes its accesses."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.log: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append((offset, size))
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


def test_devices_get_offsets_into_their_range() -> None:
    bus, uart, rtc = Bus(), Recorder(0x60), Recorder(1)
    bus.add(0x3F8, 8, uart)
    bus.add(0x70, 2, rtc)
    assert bus.read(0x3FD, 1) == 0x60
    bus.write(0x71, 1, 0xAB)
    assert uart.log == [(5, 1)]
    assert rtc.log == [(1, 1, 0xAB)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_unclaimed_read_is_all_ones_and_an_unclaimed_write_is_dropped(size: int) -> None:
    bus, device = Bus(), Recorder()
    bus.add(0x100, 4, device)
    for address in (0, 0xFF, 0x104, -1, -(1 << 70), 1 << 64, (1 << 64) - 1):
        assert bus.read(address, size) == (1 << 8 * size) - 1
        bus.write(address, size, 0)
    assert not device.log


def test_an_access_that_runs_past_the_range_is_unclaimed() -> None:
    bus, first, second = Bus(), Recorder(), Recorder()
    bus.add(0x10, 4, first)
    bus.add(0x14, 4, second)
    assert bus.read(0x12, 4) == 0xFFFFFFFF
    assert bus.read(0x0F, 2) == 0xFFFF
    assert bus.read(0x12, 2) == 0
    assert bus.read(0x14, 4) == 0
    assert first.log == [(2, 2)]
    assert second.log == [(0, 4)]


def test_a_read_has_no_more_bytes_than_the_access() -> None:
    bus = Bus()
    bus.add(0, 8, Recorder(0x11223344))
    assert bus.read(0, 1) == 0x44
    assert bus.read(0, 2) == 0x3344
    assert bus.read(0, 4) == 0x11223344


@pytest.mark.parametrize(("start", "size"), [(0, 11), (10, 1), (12, 2), (13, 1), (5, 100)])
def test_overlap_is_refused_and_changes_nothing(start: int, size: int) -> None:
    bus, device = Bus(), Recorder(7)
    bus.add(10, 4, device)
    with pytest.raises(ValueError, match="overlaps"):
        bus.add(start, size, Recorder())
    assert bus.read(10, 1) == 7
    assert bus.read(9, 1) == bus.read(14, 1) == 0xFF


@pytest.mark.parametrize(("start", "size"), [(-1, 4), (0, 0), (0, -1)])
def test_an_empty_or_negative_range_is_refused(start: int, size: int) -> None:
    with pytest.raises(ValueError, match="bad range"):
        Bus().add(start, size, Recorder())


def test_remove_frees_the_range() -> None:
    bus = Bus()
    bus.add(10, 4, Recorder(7))
    bus.remove(10)
    assert bus.read(10, 1) == 0xFF
    bus.add(8, 4, Recorder(9))
    assert bus.read(10, 1) == 9
    with pytest.raises(KeyError):
        bus.remove(10)


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=12)


@given(ranges, st.integers(-4, 80), st.sampled_from([1, 2, 4, 8]))
def test_a_lookup_agrees_with_a_linear_search(
    wanted: list[tuple[int, int]], address: int, size: int
) -> None:
    bus = Bus()
    claimed: list[tuple[int, int, Recorder]] = []
    for start, length in wanted:
        free = all(start >= s + n or s >= start + length for s, n, _ in claimed)
        device = Recorder(len(claimed))
        if free:
            bus.add(start, length, device)
            claimed.append((start, length, device))
        else:
            with pytest.raises(ValueError, match="overlaps"):
                bus.add(start, length, device)
    owners = [c for c in claimed if c[0] <= address and address + size <= c[0] + c[1]]
    expected = owners[0][2].value if owners else (1 << 8 * size) - 1
    assert bus.read(address, size) == expected
    for start, _, device in claimed:
        assert device.log == (
            [(address - start, size)] if owners and device is owners[0][2] else []
        )
