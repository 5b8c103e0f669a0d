"""An image for tests of engines; what needs another one has a fixture of that name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm.devices.virtio_blk import Image

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
