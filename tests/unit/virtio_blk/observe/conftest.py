"""The disks whose statistics and traces are tested."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from blk_bench import Maker, benches

from pykvm.devices.virtio_blk import ErrorPolicy


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    """Makes disks that merge sequentially and report errors, unless told otherwise."""
    with benches(tmp_path / "disk", werror=ErrorPolicy.REPORT) as maker:
        yield maker
