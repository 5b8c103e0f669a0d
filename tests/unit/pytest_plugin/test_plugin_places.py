"""The bound of guests that run at once."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from patience import PATIENCE, ends, goes_on, in_thread, until

from pykvm.pytest_plugin import places as module
from pykvm.pytest_plugin.places import UNIT, Place, Places, usable_memory


def test_a_process_without_guests_waits_until_there_is_a_place(tmp_path: Path) -> None:
    one, other = (Places(str(tmp_path), 3 * UNIT) for _ in range(2))
    small, large = one.take(UNIT), one.take(2 * UNIT)
    taken: list[Place] = []
    thread = in_thread(lambda: taken.append(other.take(2 * UNIT)))
    assert goes_on(thread)
    small.give_back()  # that is too little
    assert goes_on(thread)
    large.give_back()
    assert ends(thread)
    assert other.taken == 1
    taken[0].give_back()
    assert one.taken == other.taken == 0


def test_a_long_wait_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0)
    said: list[str] = []
    place = Places(str(tmp_path), UNIT).take(UNIT)
    other = Places(str(tmp_path), UNIT, said.append)
    thread = in_thread(lambda: other.take(UNIT).give_back())
    until(lambda: said)
    assert goes_on(thread)
    place.give_back()
    assert ends(thread)
    assert len(said) == 1
    assert "pykvm_memory" in said[0]


def test_a_guest_larger_than_everything_runs_alone(tmp_path: Path) -> None:
    places = Places(str(tmp_path), UNIT)
    with places.take(100 * UNIT):
        pass
    with Places(str(tmp_path), 0).take(100 * UNIT):
        pass


def test_a_process_with_guests_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tests that need two guests each could wait for each other."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0)
    one, other = (Places(str(tmp_path), 2 * UNIT) for _ in range(2))
    with one.take(UNIT), other.take(UNIT), one.take(UNIT), other.take(UNIT):
        assert one.taken == other.taken == 2


def hold(folder: str, held: "multiprocessing.synchronize.Event") -> None:
    Places(folder, UNIT).take(UNIT)
    held.set()
    threading.Event().wait()


def test_a_process_that_dies_gives_its_places_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), held))
    process.start()
    assert held.wait(PATIENCE)
    places = Places(str(tmp_path), UNIT)
    thread = in_thread(lambda: places.take(UNIT).give_back())
    assert goes_on(thread)
    process.kill()
    process.join()
    assert ends(thread)


def test_no_folder_means_no_bound(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("", str(tmp_path / "file")):
        places = Places(folder, UNIT)
        with places.take(UNIT), places.take(UNIT):
            pass


def test_the_default_is_a_part_of_the_hosts_memory() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < usable_memory() <= memory // 2
