"""Read-only images whose size is not a multiple of a sector: zeros follow their end."""

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blk_engines import engine_on, engines, run
from blk_host import require_direct
from blk_operations import operation

from pykvm.devices.virtio_blk import CacheMode, Engine, EngineFactory, Image
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.layers.padding import padded
from pykvm.devices.virtio_blk.open import DiskConfig, open_image
from pykvm.memory.ram import Ram

IN, OUT = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
END = 16384 + 700
"""Bytes of the file: of its last sector, the second after the last whole page, 188."""
CONTENT = random.Random(1).randbytes(END)
DISK = CONTENT + bytes(-END % 512)

pytestmark = engines()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = tmp_path / "disk"
    file.write_bytes(CONTENT)
    return file


@contextmanager
def made(factory: EngineFactory, path: Path, cache: CacheMode) -> Iterator[tuple[Engine, Ram]]:
    """An engine on the image at ``path``, with memory that is not zeros."""
    with engine_on(Image(path, True, cache), padded(factory), 1 << 20) as (engine, ram):
        ram.bytes[:] = b"\xaa" * (1 << 20)
        yield engine, ram


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
@pytest.mark.parametrize("first", [0, 4096, 16384, 16896])
def test_the_last_sector_is_filled(
    factory: EngineFactory, path: Path, cache: CacheMode, first: int
) -> None:
    if cache.direct:
        require_direct(path.parent)
    length = len(DISK) - first
    for places in ([(8192, length)], [(8192, length - 100), (65536, 40), (500, 60)]):
        with made(factory, path, cache) as (engine, ram):
            assert run(engine, [operation(IN, first, places)]) == [(0, length)]
            assert b"".join(ram.bytes[at : at + size] for at, size in places) == DISK[first:]
            at, size = places[-1]
            assert ram.bytes[at + size] == 0xAA


def test_a_read_that_begins_behind_the_end(factory: EngineFactory, path: Path) -> None:
    """As the rest of a read that came short there."""
    with made(factory, path, CacheMode.WRITEBACK) as (engine, ram):
        assert run(engine, [operation(IN, END, [(0, 512 - 188)])]) == [(0, 512 - 188)]
        assert ram.bytes[: 512 - 188] == bytes(512 - 188)


def test_a_truncated_part_is_not_filled(factory: EngineFactory, path: Path) -> None:
    with made(factory, path, CacheMode.WRITEBACK) as (engine, _):
        os.truncate(path, END - 1)
        ((error, moved),) = run(engine, [operation(IN, 16384, [(0, 1024)])])
        assert (error, moved) == (0, 699)
        assert run(engine, [operation(IN, END - 1, [(0, 1)])]) == [(0, 0)]


def test_an_error_is_not_filled(factory: EngineFactory, path: Path) -> None:
    with made(factory, path, CacheMode.WRITEBACK) as (engine, _):
        assert run(engine, [operation(OUT, 16896, [(0, 512)])]) == [(errno.EBADF, 0)]


def test_a_snapshot_of_it_can_be_written(factory: EngineFactory, path: Path) -> None:
    image, engine, _ = open_image(DiskConfig(path, snapshot=True, engine=factory))
    assert (image.size, image.padding) == (len(DISK), 0)
    assert "zeros" in image.notices[0]
    with engine_on(image, engine, 1 << 20) as (made_engine, ram):
        assert run(made_engine, [operation(OUT, 16384, [(4096, 512)])]) == [(0, 512)]
        assert run(made_engine, [operation(IN, 0, [(8192, len(DISK))])]) == [(0, len(DISK))]
        expected = DISK[:16384] + bytes(512) + DISK[16896:]
        assert ram.bytes[8192 : 8192 + len(DISK)] == expected
        assert run(made_engine, [operation(OUT, 16896, [(8192, 512)])]) == [(0, 512)]
        assert run(made_engine, [operation(IN, 16896, [(65536, 512)])]) == [(0, 512)]
        assert ram.bytes[65536:66048] == DISK[:512]
    assert path.read_bytes() == CONTENT


def test_other_images_have_the_engine_itself(factory: EngineFactory, path: Path) -> None:
    os.truncate(path, 16384)
    image = Image(path, readonly=True)
    with engine_on(image, factory, 1 << 20) as (engine, ram):
        assert padded(lambda image, ram: engine)(image, ram) is engine
