"""What tests of disks and engines start from; who needs another has a fixture of that name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from blk_device import Disk, Maker, disk_file, disks
from blk_host import loop_device, require_direct

from pykvm.devices.virtio_blk import CacheMode, Image

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(bytes(i * 31 % 253 for i in range(SIZE)))
    return file


@pytest.fixture
def image(path: Path) -> Iterator[Image]:
    opened = Image(path)
    yield opened
    opened.close()


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[str]:
    """A loop device of 64 KiB."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(65536))
    with loop_device(backing) as device:
        yield device


@pytest.fixture(params=[CacheMode.WRITEBACK, CacheMode.NONE], ids=["cached", "direct"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> CacheMode:
    """With and without the host's cache; skips what the filesystem does not have."""
    mode: CacheMode = request.param
    if mode.direct:
        require_direct(tmp_path)
    return mode


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    """Are the rings packed ones? Once not, once so."""
    return bool(request.param)


@pytest.fixture
def disk_path(tmp_path: Path) -> Path:
    """An image of blk_device.SECTORS random sectors."""
    return disk_file(tmp_path)


@pytest.fixture
def make_disk(disk_path: Path, packed: bool) -> Iterator[Maker]:
    """Makes disks on ``disk_path``, and closes them at the end."""
    with disks(disk_path, packed) as maker:
        yield maker


@pytest.fixture
def disk(make_disk: Maker) -> Disk:
    """A started disk on ``disk_path``."""
    return make_disk(serial="pykvm-1")
