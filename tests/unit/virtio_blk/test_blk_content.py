"""The content of a disk, read and written from the host."""

from pathlib import Path
from typing import Any

import pytest
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.content import read, write
from pykvm.devices.virtio_blk.layers.faults import Fault
from pykvm.devices.virtio_blk.open import DiskConfig, open_disk
from pykvm.devices.virtio_blk.saved import freeze
from pykvm.errors import HostError, UsageError

SIZE = 3 << 20
KINDS: list[dict[str, Any]] = [
    {},
    {"cache": "none"},
    {"engine": "threads"},
    {"snapshot": True},
    {"snapshot": True, "cache": "none"},
    {"blank": SIZE},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(bytes(range(256)) * (SIZE // 256))
    return file


def config(path: Path, options: dict[str, Any]) -> DiskConfig:
    return DiskConfig(**options) if "blank" in options else DiskConfig(path, **options)


@pytest.mark.parametrize("options", KINDS, ids=str)
@settings(
    max_examples=examples(10),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, 5000))))
def test_any_bytes_can_be_read_and_written(
    path: Path, options: dict[str, Any], steps: list[tuple[bool, int, int]]
) -> None:
    with open_disk(config(path, options)) as disk:
        image = disk.image
        expected = bytearray(read(image, 0, SIZE))
        for number, (freezes, offset, length) in enumerate(steps):
            data = bytes([number + 1]) * min(length, SIZE - offset)
            write(image, offset, data)
            expected[offset : offset + len(data)] = data
            if freezes and (layers := freeze(disk)):
                layers.close()
            first = max(offset - 700, 0)
            assert read(image, first, 2000 if first + 2000 <= SIZE else 0) == (
                expected[first : first + 2000] if first + 2000 <= SIZE else b""
            )
        assert read(image, 0, SIZE) == expected


def test_faults_do_not_apply_and_a_snapshot_keeps_its_image(path: Path) -> None:
    before = path.read_bytes()
    with open_disk(DiskConfig(path, snapshot=True, faults=[Fault(errno="EIO")])) as disk:
        write(disk.image, 1000, b"host")
        assert read(disk.image, 998, 8) == before[998:1000] + b"host" + before[1004:1006]
    assert path.read_bytes() == before


def test_a_partial_last_sector_is_padded(path: Path) -> None:
    path.write_bytes(b"x" * 1000)
    with open_disk(DiskConfig(path, readonly=True)) as disk:
        assert read(disk.image, 990, 34) == b"x" * 10 + bytes(24)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (SIZE, 1), (0, SIZE + 1)])
def test_bytes_that_are_not_there(path: Path, offset: int, length: int) -> None:
    with open_disk(DiskConfig(path)) as disk:
        with pytest.raises(UsageError, match="are not on a disk of"):
            read(disk.image, offset, length)
        assert read(disk.image, SIZE, 0) == b""


def test_a_read_only_disk_is_not_written(path: Path) -> None:
    with (
        open_disk(DiskConfig(path, readonly=True)) as disk,
        pytest.raises(UsageError, match="is read-only"),
    ):
        write(disk.image, 0, b"x")


def test_a_file_that_became_shorter_is_an_error_of_the_host(path: Path) -> None:
    with open_disk(DiskConfig(path)) as disk:
        path.write_bytes(b"")
        with pytest.raises(HostError, match="is shorter than the disk"):
            read(disk.image, 0, 512)
