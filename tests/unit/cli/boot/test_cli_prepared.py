"""The first run with ``--snapshot DIR``, which boots the guest once for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.cli.boot.prepared import _save_booted
from pykvm.machine.config import MachineConfig
from pykvm.snapshot.fields import SnapshotError

CONFIG = MachineConfig(guest="guest", agent=True, console="none")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "booted"


def boots(*before: Callable[[Path], object]) -> Callable[..., None]:
    """A boot that writes a snapshot of one file, after the calls ``before``."""

    def boot(config: MachineConfig, folder: str, *, timeout: float | None, watch: object) -> None:
        assert timeout == 5
        for step in before:
            step(Path(folder))
        os.mkdir(folder)
        Path(folder, "ram").touch()

    return boot


def test_the_boot_can_write_to_nothing_but_a_folder_of_its_own(place: Path):
    seen = []
    boot = boots(lambda folder: seen.append((folder.parent.parent, os.listdir(folder.parent))))
    _save_booted(CONFIG, str(place), boot, 5)
    assert seen == [(place.parent, [])]
    assert os.listdir(place) == ["ram"]
    assert os.listdir(place.parent) == ["booted"]


def test_a_run_beside_this_one_may_be_first(place: Path):
    def other(folder: Path) -> None:
        _save_booted(CONFIG, str(place), boots(), 5)
        (place / "first").touch()

    _save_booted(CONFIG, str(place), boots(other), 5)
    assert sorted(os.listdir(place)) == ["first", "ram"]
    assert os.listdir(place.parent) == ["booted"]


@pytest.mark.parametrize(
    "error", [SnapshotError("no room"), OSError(28, "full"), KeyboardInterrupt]
)
def test_a_boot_that_fails_leaves_nothing(place: Path, error: BaseException):
    def fail(folder: Path) -> None:
        folder.mkdir()
        raise error

    with pytest.raises((SnapshotError, KeyboardInterrupt)):
        _save_booted(CONFIG, str(place), boots(fail), 5)
    assert os.listdir(place.parent) == []


def test_a_place_that_cannot_be_written_shows_before_the_boot(place: Path):
    def never(folder: Path) -> None:
        pytest.fail("it boots")

    with pytest.raises(SnapshotError, match="cannot be written: no such file"):
        _save_booted(CONFIG, str(place / "below"), boots(never), 5)
