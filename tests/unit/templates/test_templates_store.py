"""The folder of templates: who may make one, what is removed, and what a killed process leaves."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from patience import patience

from pykvm.errors import UsageError
from pykvm.templates import store as stores
from pykvm.templates import upkeep
from pykvm.templates.store import Store, TemplateError, open_store, template_limit

KEY, OTHER, THIRD = "a" * 32, "b" * 32, "c" * 32
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "cache" / "templates"), 512 * MIB)
    upkeep.prepare(made, MIB)
    return made


def make(store: Store, key: str, size: int = 4096) -> None:
    os.mkdir(store.path(key))
    Path(store.path(key), "ram").write_bytes(os.urandom(size))


def nobody() -> None:
    pytest.fail("nobody else has the template")


def test_a_template_is_found_and_counts_as_used(store: Store) -> None:
    assert store.find(KEY) == ""
    make(store, KEY)
    os.utime(store.path(KEY), (1000, 1000))
    before = time.time() - 1
    assert store.find(KEY) == store.path(KEY)
    assert [one.key for one in upkeep.kept(store)] == [KEY]
    assert upkeep.kept(store)[0].used >= before


def test_the_longest_unused_templates_go_first(store: Store) -> None:
    for at, key in enumerate((KEY, OTHER, THIRD)):
        make(store, key, MIB)
        os.utime(store.path(key), (1000 + at, 1000 + at))
    store.find(KEY)
    assert [one.key for one in upkeep.tidy(store, 5 * MIB)] == []
    assert [one.key for one in upkeep.tidy(store, MIB + MIB // 2)] == [OTHER, THIRD]
    assert sorted(os.listdir(store.folder)) == [KEY]
    assert upkeep.tidy(store, 0)[0].bytes >= MIB
    assert os.listdir(store.folder) == []


def test_rubbish_of_killed_processes_is_removed(store: Store) -> None:
    make(store, KEY)
    os.mkdir(os.path.join(store.folder, "removed-1-2"))
    for name in (OTHER + ".building/.pykvm-snapshot-x", THIRD + ".building"):
        os.makedirs(os.path.join(store.folder, name))
    for key in (OTHER, KEY):
        Path(store.path(key) + ".lock").touch()
    old = Path(store.path(OTHER) + ".failed")
    old.touch()
    os.utime(old, (1000, 1000))
    store.failed(THIRD, "it panicked")
    upkeep.tidy(store, store.limit)
    assert sorted(os.listdir(store.folder)) == [KEY, THIRD + ".failed"]


def test_tidying_leaves_what_is_being_made(store: Store) -> None:
    with upkeep.held(store, KEY, 0, nobody) as mine:
        assert mine
        place = upkeep.building(store, KEY)
        upkeep.tidy(store, 0)
        assert os.path.isdir(place)
    assert os.listdir(store.folder) == []


def test_one_at_a_time_makes_a_template(store: Store) -> None:
    waited: list[str] = []
    with upkeep.held(store, KEY, 0, nobody):
        with upkeep.held(store, KEY, 0.1, lambda: waited.append("first")) as second:
            assert not second
        with upkeep.held(store, OTHER, 0, nobody) as other:
            assert other
        found: list[bool] = []

        def wait() -> None:
            with upkeep.held(store, KEY, patience(), lambda: waited.append("second")) as mine:
                found.append(mine)

        waiter = threading.Thread(target=wait)
        waiter.start()
        deadline = time.monotonic() + patience()
        while waited != ["first", "second"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not found
    waiter.join(patience())
    assert found == [True]
    assert os.listdir(store.folder) == []


def _hold(store: Store, started: "multiprocessing.synchronize.Event") -> None:
    with upkeep.held(store, KEY, 0, lambda: None):
        upkeep.building(store, KEY)
        started.set()
        time.sleep(3600)


def test_a_killed_maker_holds_nothing(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    maker = spawn.Process(target=_hold, args=(store, started), daemon=True)
    maker.start()
    assert started.wait(patience())
    maker.kill()
    maker.join(patience())
    assert sorted(os.listdir(store.folder)) == [KEY + ".building", KEY + ".lock"]
    with upkeep.held(store, KEY, patience(), lambda: None) as mine:
        assert mine
        assert os.listdir(upkeep.building(store, KEY)) == []
    assert os.listdir(store.folder) == []


def test_a_failure_counts_for_an_hour(store: Store) -> None:
    assert store.failure(KEY) == ""
    store.failed(KEY, "it panicked")
    assert store.failure(KEY) == "it panicked"
    old = time.time() - stores.FAILED_SECONDS - 1
    os.utime(store.path(KEY) + ".failed", (old, old))
    assert store.failure(KEY) == ""


def test_no_home_means_no_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYKVM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    with pytest.raises(TemplateError, match="no home to keep one; set PYKVM_CACHE") as caught:
        open_store()
    assert not caught.value.known


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(str(tmp_path / "file" / "templates"), MIB)
    with pytest.raises(TemplateError, match=r"none can be kept in .*templates: not a directory"):
        upkeep.prepare(store, 0)
    with pytest.raises(TemplateError, match=r"MiB are free, and \d+ MiB may be needed; make room"):
        upkeep.prepare(Store(str(tmp_path / "t"), MIB), 1 << 60)


def test_the_limit_is_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKVM_TEMPLATE_LIMIT", raising=False)
    assert template_limit() == stores.DEFAULT_LIMIT
    for text, limit in {"64": 64 * MIB, "1G": 1 << 30, "0": 0}.items():
        monkeypatch.setenv("PYKVM_TEMPLATE_LIMIT", text)
        assert template_limit() == limit
    with pytest.raises(TemplateError) as caught:
        open_store()
    assert caught.value.known
    monkeypatch.setenv("PYKVM_TEMPLATE_LIMIT", "much")
    with pytest.raises(UsageError, match=r"PYKVM_TEMPLATE_LIMIT=much is not a size; write it like"):
        open_store()
