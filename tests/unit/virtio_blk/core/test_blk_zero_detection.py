"""detect-zeroes: writes of zeros become operations without data."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from blk_bench import SECTORS, Bench, EngineScript, Faults, Maker, Short, benches
from blk_operations import flush, operation, read, write
from blk_ranges import DISCARD, ZEROES
from blk_requests import IN, OUT
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import DetectZeroes, DiscardMode, DiskOptions, ErrorPolicy
from pykvm.devices.virtio_blk.core.zero_detection import PIECE, ZeroDetector
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram

ZERO, DATA = bytes(4096), b"d" * 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path) -> Iterator[Maker]:
    with benches(path) as maker:
        yield maker


def do(bench: Bench, *heads: int) -> None:
    bench.kick()
    for head in heads:
        assert bench.wait(head)[0] == 0


def unlike_zero(places: list[int]) -> Ram:
    ram = Ram.flat(1 << 18)
    for place in places:
        ram.bytes[place] = 1
    return ram


@given(
    st.lists(st.integers(0, (1 << 18) - 1), max_size=2),
    st.lists(st.tuples(st.integers(0, 1 << 17), st.integers(0, 1 << 17)), max_size=3),
    st.booleans(),
)
def test_every_write_of_zeros_is_found(
    places: list[int], parts: list[tuple[int, int]], unmap: bool
) -> None:
    ram = unlike_zero(places)
    (found := operation(OUT, 512, parts)).durable = True
    ZeroDetector(ram, unmap).convert([found])
    zeros = not any(start <= place < start + size for place in places for start, size in parts)
    assert found.kind == (ZEROES if zeros else OUT)
    assert not zeros or found.unmap == unmap
    assert (found.offset, found.length, found.durable) == (512, sum(n for _, n in parts), True)


def test_the_last_byte_counts() -> None:
    for length in (1, PIECE, PIECE + 1, 3 * PIECE):
        ram = unlike_zero([length - 1])
        found = write(0, length)
        ZeroDetector(ram, True).convert([found])
        assert found.kind == OUT


def test_only_writes_are_examined() -> None:
    batch = [read(), flush(), operation(DISCARD)]
    ZeroDetector(Ram.flat(4096), True).convert(batch)
    assert [op.kind for op in batch] == [IN, flush().kind, DISCARD]


@pytest.mark.parametrize("mode", list(DetectZeroes))
def test_the_engine_gets_writes_of_zeros_as_write_zeroes(
    make: Maker, path: Path, mode: DetectZeroes
) -> None:
    """The guest's request stays a write, and is counted as one."""
    script = EngineScript()
    bench = make(script, detect_zeroes=mode)
    before = path.stat().st_blocks
    do(bench, bench.write(8, ZERO), bench.write(64, DATA))
    name = "write" if mode is DetectZeroes.OFF else "write-zeroes"
    assert script.log == [(name, 8, 8), ("write", 64, 8)]
    assert path.read_bytes()[4096:8192] == ZERO
    assert (path.stat().st_blocks < before) == (mode is DetectZeroes.UNMAP)
    assert bench.stats() == {"wr_operations": 2, "wr_bytes": 8192}


def test_merged_writes_are_examined_together(make: Maker, path: Path) -> None:
    script = EngineScript()
    bench = make(script, detect_zeroes=DetectZeroes.ON)
    do(bench, bench.write(0, ZERO), bench.write(8, ZERO))
    do(bench, bench.write(32, ZERO), bench.write(40, DATA))
    assert script.log == [("write-zeroes", 0, 16), ("write", 32, 16)]
    assert path.read_bytes()[:8192] == 2 * ZERO
    assert bench.stats()["wr_merged"] == 2


def test_a_write_that_fails_is_examined_again(make: Maker, path: Path) -> None:
    """Each member of a merged write, the rest of a short one, all of one that a stop has kept."""
    faults = {("write-zeroes", 2): [Short(512), errno.ENOSPC]}
    script = EngineScript(Faults(faults))
    bench = make(script, detect_zeroes=DetectZeroes.ON, werror=ErrorPolicy.STOP)
    heads = [bench.write(0, bytes(1024)), bench.write(2, bytes(1024))]
    bench.kick()
    bench.device.pause()
    bench.device.resume()
    assert bench.wait(heads[0])[0] == 0
    assert bench.wait(heads[1])[0] == 0
    assert script.log[0] == ("write-zeroes", 0, 4)
    assert {kind for kind, _, _ in script.log} == {"write-zeroes"}
    assert path.read_bytes() == bytes(2048) + b"o" * (512 * SECTORS - 2048)


def test_a_flush_waits_for_writes_of_zeros(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script, detect_zeroes=DetectZeroes.ON)
    first = bench.write(0, ZERO)
    bench.kick()
    script.wait_for(1)
    second = bench.flush()
    bench.kick()
    bench.device.pause(0.05)
    assert script.log == [("write-zeroes", 0, 8)]
    bench.device.resume()
    script.release()
    script.wait_for(1)
    script.release()
    assert bench.wait(first)[0] == bench.wait(second)[0] == 0


def test_unmap_needs_a_disk_that_unmaps() -> None:
    for mode in (DiscardMode.IGNORE, DiscardMode.OFF):
        DiskOptions(detect_zeroes=DetectZeroes.ON, discard=mode)
        with pytest.raises(UsageError, match="detect-zeroes=unmap does not work with discard="):
            DiskOptions(detect_zeroes=DetectZeroes.UNMAP, discard=mode)
