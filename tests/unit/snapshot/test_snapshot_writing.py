"""A snapshot's folder is written whole or not at all, and leaves nothing behind."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_folder import PAGE, write

from pykvm.snapshot import folder, writing
from pykvm.snapshot.fields import Saved, SnapshotError

STEPS = ("_aside", "_write_json", "content_hash", "_sync")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "saved"


def test_a_snapshot_is_read_as_it_was_written(place: Path):
    ram = bytes(PAGE) + b"x" * PAGE
    write(place, ram)
    with folder.OpenSnapshot(place) as opened:
        assert opened.manifest["cpus"] == 2
        state = Saved("state", opened.state)
        clock = state.part("clock")
        state.end()
        assert clock.flag("on")
        assert clock.data("cells", 0, 9) == b"\0\xff"
        assert clock.parts("timers", 1)[0].integer("left", -1, 0) == -1
        assert clock.text("name", 9) == "rtc"
        clock.end()
        assert opened.ram_size == len(ram)
        assert os.pread(opened.ram, len(ram) + 1, 0) == ram
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(opened.ram, b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened.ram)
    assert set(opened.manifest["hashes"]) == {"ram", "state.json"}
    assert sorted(os.listdir(place)) == ["manifest.json", "ram", "state.json"]
    assert os.listdir(place.parent) == ["saved"]


def test_only_the_owner_can_read_a_guests_memory(place: Path):
    write(place)
    assert place.stat().st_mode & 0o077 == 0


names = st.text("abcdefg_", min_size=1, max_size=9)
# A part with nothing but a string named hex would be read as data; no device has one.
parts = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.text(), st.binary()),
    lambda inner: st.one_of(st.dictionaries(names, inner), st.lists(inner, max_size=4)),
    max_leaves=20,
)


@settings(max_examples=50)
@given(st.dictionaries(names, parts))
def test_any_state_is_read_as_it_was_written(tmp_path_factory, state):
    place = tmp_path_factory.mktemp("state") / "saved"
    write(place, b"", {"whole": state})
    with folder.OpenSnapshot(place) as opened:
        assert opened.state["whole"] == state


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_a_place_that_is_taken_stays_as_it_is(place: Path, kind: str):
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text("precious")
    else:
        place.symlink_to("nowhere")
    with pytest.raises(SnapshotError, match="exists already"):
        write(place)
    assert os.listdir(place.parent) == ["saved"]
    assert place.is_symlink() or place.is_dir() or place.read_text() == "precious"


def test_a_name_as_long_as_the_filesystem_allows(tmp_path: Path):
    write(tmp_path / ("n" * 255))
    with pytest.raises(SnapshotError, match="file name too long"):
        write(tmp_path / ("n" * 256))


def test_a_parent_that_is_missing_or_a_file(tmp_path: Path):
    with pytest.raises(SnapshotError, match="cannot be written: no such file"):
        write(tmp_path / "missing" / "saved")
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match="cannot be written: not a directory"):
        write(tmp_path / "file" / "saved")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_parent_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def denied(*arguments) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing, "_aside", denied)
    with pytest.raises(SnapshotError, match=os.strerror(number).lower()):
        write(place)
    assert os.listdir(place.parent) == []


def failing(whole, number: int, error: BaseException):
    """``whole``, but the call of this number raises ``error``."""
    calls = []

    def function(*args, **options):
        calls.append(args)
        if len(calls) == number:
            raise error
        return whole(*args, **options)

    return function


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=str
)
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ftruncate", 1),
        ("pwrite", 1),
        ("pwrite", 2),
        ("fsync", 1),
        ("fsync", 2),
        ("fsync", 3),
        ("fsync", 4),
        ("fsync", 5),
        ("rename", 1),
    ],
)
def test_whatever_fails_nothing_is_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, error: BaseException
):
    """The fourth fsync is the folder's, the fifth its parent's, after the rename."""
    monkeypatch.setattr(os, name, failing(getattr(os, name), number, error))
    with pytest.raises((SnapshotError, KeyboardInterrupt)) as caught:
        write(place, b"x" * PAGE + bytes(PAGE) + b"x" * PAGE)
    if isinstance(error, OSError):
        assert "no space left on device" in str(caught.value)
    assert os.listdir(place.parent) == []


def test_a_host_that_cannot_sync_folders_can_save(place: Path, monkeypatch: pytest.MonkeyPatch):
    whole = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        whole(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write(place)
    folder.OpenSnapshot(place).close()


def test_a_state_that_is_no_json_is_a_bug_and_leaves_nothing(place: Path):
    with pytest.raises(TypeError, match="a state holds set"):
        write(place, state={"clock": {1}})
    assert os.listdir(place.parent) == []


def test_before_the_last_step_nothing_has_the_final_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    """A process that is killed cannot clean up, so each step is looked at from within."""
    seen = []

    def looking(whole):
        def function(*args, **options):
            seen.append(place.exists())
            return whole(*args, **options)

        return function

    for name in STEPS:
        monkeypatch.setattr(writing, name, looking(getattr(writing, name)))
    write(place)
    assert seen[-1:] == [True]
    assert not any(seen[:-1])
    assert len(seen) > len(STEPS)


def test_what_could_not_be_read_again_is_not_written(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "MOST_JSON", 1000)
    with pytest.raises(SnapshotError, match=r"state\.json would have 0 MiB, and at most"):
        write(place, state={"cells": bytes(500)})
    assert os.listdir(place.parent) == []


def test_a_killed_process_leaves_a_folder_that_the_next_one_removes(place: Path):
    child = os.fork()
    if not child:
        writing.write(place, {}, {}, lambda file: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (rubbish,) = os.listdir(place.parent)
    assert rubbish.startswith(writing.PREFIX)
    with writing.unfinished(place.parent / "other") as busy:
        assert os.listdir(place.parent) == [busy.name]
        (busy / "file").touch()
        write(place)
        assert os.listdir(busy) == ["file"]
    assert os.listdir(place.parent) == ["saved"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_nothing_but_folders_is_removed(place: Path, kind: str):
    rubbish = place.with_name(f"{writing.PREFIX}0")
    precious = place.with_name("precious")
    precious.mkdir()
    (precious / "file").touch()
    if kind == "link":
        rubbish.symlink_to("precious")
    else:
        rubbish.touch()
    write(place)
    assert os.listdir(precious) == ["file"]
    assert os.path.lexists(rubbish)


def test_a_folder_that_is_taken_for_rubbish_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    """A different process may look between its creation and its lock."""
    made = writing.mkdtemp
    kinds = iter(["removed", "locked", ""])
    held = []

    def mkdtemp(**options: object) -> str:
        path = made(**options)
        kind = next(kinds, "")
        if kind:
            held.append(os.open(path, os.O_RDONLY))
            fcntl.flock(held[-1], fcntl.LOCK_EX)
        if kind == "removed":
            os.rmdir(path)
        return path

    monkeypatch.setattr(writing, "mkdtemp", mkdtemp)
    write(place)
    assert next(kinds, "none left") == "none left"
    for one in held:
        os.close(one)
    assert (place / "ram").exists()


def test_a_filesystem_without_locks_will_do(place: Path, monkeypatch: pytest.MonkeyPatch):
    def flock(fd: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    place.with_name(f"{writing.PREFIX}0").mkdir()
    monkeypatch.setattr(fcntl, "flock", flock)
    write(place)
    assert sorted(os.listdir(place.parent)) == [f"{writing.PREFIX}0", "saved"]
