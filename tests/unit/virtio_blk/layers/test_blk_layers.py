"""Overlays that are frozen, put back, written to a folder and opened from it."""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from blk_device import IN, OUT
from blk_engines import engines, wait
from blk_operations import operation, over
from blk_ranges import DISCARD, ZEROES
from effort import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import CacheMode, Engine, EngineFactory, Image
from pykvm.devices.virtio_blk.layers.frozen import MOST_LAYERS, Layers
from pykvm.devices.virtio_blk.layers.layer_files import open_layers, write_layers
from pykvm.devices.virtio_blk.layers.overlay import OverlayImage
from pykvm.devices.virtio_blk.layers.sector_map import CHUNK, SectorMap
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import SnapshotError
from pykvm.snapshot.folder import OpenFolder

SECTORS = 64
SIZE = SECTORS << 9
BASE = random.Random(1).randbytes(SIZE)
RAM = 4 * SIZE


class Overlay:
    """An overlay with an engine, and the bytes that it should have."""

    def __init__(self, factory: EngineFactory, image: OverlayImage, content: bytes) -> None:
        self.ram = Ram.flat(RAM)
        self.image = image
        self.engine: Engine = image.wrap(factory)(image, self.ram)
        self.content = bytearray(content)

    def write(self, sector: int, count: int, fill: int) -> None:
        start, end = sector << 9, min(sector + count << 9, len(self.content))
        if start < end:
            self.content[start:end] = self.ram.bytes[: end - start] = bytes([fill]) * (end - start)
            self._execute(operation(OUT, start, [(0, end - start)]))

    def zero(self, sector: int, count: int, kind: int) -> None:
        start, end = sector << 9, min(sector + count << 9, len(self.content))
        if start < end:
            self.content[start:end] = bytes(end - start)
            self._execute(over(kind, start, end - start, unmap=kind == DISCARD))

    def check(self) -> None:
        """Read all, in pieces that may come short."""
        at = 0
        while at < len(self.content):
            asked = operation(IN, at, [(SIZE, len(self.content) - at)])
            self._execute(asked)
            got = bytes(self.ram.bytes[SIZE : SIZE + asked.moved])
            assert asked.moved
            assert got == self.content[at : at + asked.moved]
            at += asked.moved

    def resize(self, sectors: int) -> None:
        size = sectors << 9
        self.image.resize(size)
        self.content = self.content[:size].ljust(size, b"\0")

    def _execute(self, asked: Any) -> None:
        self.engine.submit([asked])
        wait(self.engine, 1)
        assert not asked.error

    def close(self) -> None:
        self.engine.close()
        self.image.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "base").write_bytes(BASE)
    return tmp_path


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


def overlay(factory: EngineFactory, folder: Path, blank: bool, cache: CacheMode) -> Overlay:
    if blank:
        return Overlay(factory, OverlayImage(None, SIZE), bytes(SIZE))
    return Overlay(factory, OverlayImage(Image(folder / "base", True, cache)), BASE)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "zero", "discard", "freeze", "back", "folder", "size"]),
        st.integers(0, SECTORS - 1),
        st.integers(1, SECTORS),
    ),
    max_size=25,
)


@engines()
@pytest.mark.parametrize("blank", [False, True], ids=["image", "blank"])
@settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
@example(
    steps=[
        ("write", 0, 2),
        ("freeze", 0, 1),
        ("size", 0, 1),
        ("size", 0, 2),
        ("freeze", 0, 1),
        ("folder", 1, 1),
    ]
)
def test_every_layer_keeps_its_content(
    factory: EngineFactory,
    folder: Path,
    cache: CacheMode,
    blank: bool,
    steps: list[tuple[str, int, int]],
) -> None:
    """Frozen layers, those of a folder too, give the content of their time to any disk."""
    taken: list[tuple[Layers, bytes]] = []
    with ExitStack() as stack:
        one = overlay(factory, folder, blank, cache)
        stack.callback(one.close)
        for number, (step, sector, count) in enumerate(steps):
            match step:
                case "write":
                    one.write(sector, count, number + 1)
                case "zero":
                    one.zero(sector, count, ZEROES)
                case "discard":
                    one.zero(sector, count, ZEROES if cache.direct else DISCARD)
                case "size":
                    one.resize(count)
                case "freeze":
                    taken.append((one.image.freeze(), bytes(one.content)))
                    stack.callback(taken[-1][0].close)
                case "back" if taken:
                    layers, content = taken[sector % len(taken)]
                    one.image.put_back(layers)
                    one.content = bytearray(content)
                case "folder" if taken:
                    layers, content = taken[sector % len(taken)]
                    place = Path(stack.enter_context(TemporaryDirectory()))
                    write_layers(layers, place, "disk0")
                    taken.append((opened(place), content))
                    stack.callback(taken[-1][0].close)
            one.check()
        for layers, content in taken:
            other = overlay(factory, folder, blank, cache)
            stack.callback(other.close)
            other.image.put_back(layers)
            other.content = bytearray(content)
            other.check()
            other.write(3, 5, 0xEE)
            other.check()
        one.check()
    assert (folder / "base").read_bytes() == BASE


@engines()
def test_many_layers_become_one(factory: EngineFactory, folder: Path, cache: CacheMode) -> None:
    one = overlay(factory, folder, False, cache)
    taken: list[tuple[Layers, bytes]] = []
    for number in range(3 * MOST_LAYERS):
        one.write(number, 2, number + 1)
        one.image.merge_frozen()
        taken.append((one.image.freeze(), bytes(one.content)))
        assert len(one.image.frozen) <= MOST_LAYERS
        one.check()
    for layers, content in taken:
        one.image.put_back(layers)
        one.content = bytearray(content)
        one.check()
        layers.close()
        layers.close()
    one.check()
    one.close()


def test_the_disk_goes_on_as_it_was_if_there_is_no_room_for_a_new_layer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = OverlayImage(Image(folder / "base", True))
    descriptors = len(os.listdir("/proc/self/fd"))
    image.room = str(folder / "absent")
    with pytest.raises(OSError, match="absent"):
        image.freeze()
    assert image.frozen == ()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    image.close()


def test_a_blank_disk_does_not_take_layers_without_zeros_below(folder: Path) -> None:
    over_image, blank = OverlayImage(Image(folder / "base", True)), OverlayImage(None, SIZE)
    layers = over_image.freeze()
    with pytest.raises(ValueError, match="begin with zeros"):
        blank.put_back(layers)
    for one in (layers, over_image, blank):
        one.close()


def opened(folder: Path) -> Layers:
    with OpenFolder(folder) as place:
        return open_layers(place, "disk0")


def written(folder: Path) -> Path:
    """A folder with the layers of a disk that has sectors 1 and 2 and sector 63."""
    image = OverlayImage(Image(folder / "base", True))
    for first, count in ((1, 2), (63, 1)):
        os.pwrite(image.fd, b"x" * (count << 9), first << 9)
        image.add(first << 9, count << 9)
    layers = image.freeze()
    write_layers(layers, folder, "disk0")
    layers.close()
    image.close()
    return folder


def test_a_folder_has_only_the_sectors_that_were_written(folder: Path) -> None:
    layers = opened(written(folder))
    (layer,) = layers.layers
    assert list(layer.map.runs()) == [(1, 2), (63, 1)]
    assert layers.size == SIZE == (folder / "disk0.data").stat().st_size
    assert (folder / "disk0.data").read_bytes()[512:1536] == b"x" * 1024
    layers.close()


def test_zeros_that_were_written_take_no_space_in_a_folder(folder: Path) -> None:
    size = 8 << 20
    image = OverlayImage(None, size)
    os.pwrite(image.fd, bytes(size), 0)
    os.pwrite(image.fd, b"x" * 512, 4 << 20)
    image.add(0, size)
    layers = image.freeze()
    write_layers(layers, folder, "disk0")
    data = folder / "disk0.data"
    assert data.stat().st_size == size
    assert data.stat().st_blocks << 9 < 1 << 20
    assert data.read_bytes() == bytes(4 << 20) + b"x" * 512 + bytes((4 << 20) - 512)
    layers.close()
    image.close()


def test_what_the_guest_has_discarded_takes_no_space(folder: Path) -> None:
    """Neither on data of the same layer nor of a lower one."""
    size = 64 << 20
    image = OverlayImage(None, size)
    taken = []
    for fill in (b"x", b""):
        if fill:
            os.pwrite(image.fd, fill * (8 << 20), 0)
            image.add(0, 8 << 20)
        else:
            image.add(0, size)  # holes, as a discard leaves them
        taken.append(image.freeze())
    write_layers(taken[1], folder, "disk0")
    data = folder / "disk0.data"
    assert data.stat().st_blocks << 9 < 1 << 20
    layers = opened(folder)
    assert next(iter(layers.layers[0].map.runs())) == (0, 4096)
    assert sum(count for _, count in layers.layers[0].map.runs()) == size >> 9
    assert not data.read_bytes().strip(b"\0")
    for one in (*taken, layers, image):
        one.close()


HEADER = 32
RECORD = 8 + CHUNK // 8


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, b"x", "no map of sectors"),
        (8, b"\2", "has format 2, this pykvm reads 1"),
        (16, pack("<Q", SIZE + 1), "cannot have"),
        (16, pack("<Q", 0), "cannot have"),
        (16, pack("<Q", 1 << 63), "cannot have"),
        (16, pack("<Q", 2 * SIZE), f"does not have {2 * SIZE} bytes"),
        (24, pack("<Q", SECTORS + 1), "ends at 65"),
        (HEADER, pack("<Q", 1), "chunk 1 is out of order"),
        (HEADER + 8, bytes(CHUNK // 8), "chunk 0 has impossible sectors"),
        (HEADER + 16, b"\1", "chunk 0 has impossible sectors"),
        (HEADER + RECORD, pack("<Q", 0) + b"\1" + bytes(511), "chunk 0 is out of order"),
        (HEADER + RECORD, b"x", "ends too early"),
    ],
)
def test_a_map_that_cannot_be_is_refused(folder: Path, at: int, data: bytes, words: str) -> None:
    file = written(folder) / "disk0.map"
    content = bytearray(file.read_bytes())
    content[at : at + len(data)] = data
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match=words):
        opened(folder)


@pytest.mark.parametrize("name", ["disk0.data", "disk0.map"])
@pytest.mark.parametrize("kind", ["absent", "fifo", "folder", "short"])
def test_files_that_are_none_are_refused(folder: Path, name: str, kind: str) -> None:
    file = written(folder) / name
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "short":
        file.write_bytes(b"")
    with pytest.raises(SnapshotError, match=f"cannot be read: {name}: "):
        opened(folder)


@settings(max_examples=examples(200))
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 5000))), st.integers(0, 9999))
def test_the_runs_of_a_map_are_the_sectors_that_were_added(
    added: list[tuple[int, int]], end: int
) -> None:
    sectors, made = set(), SectorMap(10_000)
    for first, count in added:
        made.add(first, first + count)
        sectors.update(range(first, first + count))
    runs = list(made.runs())
    assert [at for first, count in runs for at in range(first, first + count)] == sorted(sectors)
    made.cut(end)
    assert made.end == end
    kept = [at for first, count in made.runs() for at in range(first, first + count)]
    assert kept == sorted(at for at in sectors if at < end)
