"""A snapshot's folder: the whole or nothing, and only files that pykvm may have written."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.errors import PykvmError
from pykvm.snapshot import folder
from pykvm.snapshot.fields import Saved, SnapshotError

PAGE = 4096
STATE = {"clock": {"on": True, "cells": b"\0\xff", "timers": [{"left": -1}], "name": "rtc"}}
STEPS = ("_aside", "_write_ram", "_write_json", "_sync")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "saved"


def write(place: Path, ram: bytes = bytes(PAGE), state: object = STATE) -> None:
    view = memoryview(ram)
    folder.write(place, {"cpus": 2}, state, view, [(0, len(ram))])  # type: ignore[arg-type]


def refuse(place: Path, words: str) -> PykvmError:
    with pytest.raises(SnapshotError, match=words) as caught:
        folder.OpenSnapshot(place)
    assert caught.value.hint
    assert caught.value.message.isprintable()
    return caught.value


# -- writing -------------------------------------------------------------------


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


@settings(max_examples=50)
@given(st.lists(st.sampled_from([b"\0", b"x", b"\0x", b"x\0"]), max_size=12), st.integers(0, 99))
def test_any_memory_is_read_as_it_was_written(tmp_path_factory, pages, rest):
    ram = b"".join(page.ljust(PAGE, page[-1:]) for page in pages) + bytes(rest)
    place = tmp_path_factory.mktemp("ram") / "saved"
    write(place, ram)
    assert (place / "ram").read_bytes() == ram


@settings(max_examples=200)
@given(st.data(), st.binary(min_size=1, max_size=9))
def test_the_same_memory_has_the_same_hash_wherever_its_holes_are(data, content):
    """A copy of a folder may have holes elsewhere, as its filesystem likes."""
    size = 16 * PAGE
    ram = bytearray(size)
    for at in data.draw(st.lists(st.integers(0, size - len(content)), max_size=4)):
        ram[at : at + len(content)] = content
    pages = [at for at in range(0, size, PAGE) if any(ram[at : at + PAGE])]
    more = data.draw(st.sets(st.sampled_from(range(0, size, PAGE))))
    block = data.draw(st.sampled_from([512, 1024, PAGE]))
    ranges = [
        (at + low, at + low + block)
        for at in sorted({*pages, *more})
        for low in range(0, PAGE, block)
        if at in more or any(ram[at + low : at + low + block])
    ]
    view = memoryview(ram)
    assert folder._hash(view, ranges) == folder._hash(view, [(0, size)])
    if pages:
        ram[pages[0]] ^= 1
        assert folder._hash(view, ranges) != folder._hash(memoryview(bytes(size)), [])


def test_pages_of_zeros_take_no_room(place: Path):
    ram = bytearray(1024 * PAGE)
    ram[500 * PAGE + 7] = 1
    write(place, ram)
    assert (place / "ram").stat().st_size == len(ram)
    assert (place / "ram").stat().st_blocks * 512 < len(ram) // 4
    assert (place / "ram").read_bytes() == ram


def test_memory_that_goes_out_in_pieces_is_whole(place: Path, monkeypatch: pytest.MonkeyPatch):
    """A write of more than 2 GiB, or on a full host, stores less than it was given."""
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:1000], at))
    ram = os.urandom(2 * PAGE) + bytes(PAGE) + os.urandom(PAGE)
    write(place, ram)
    assert (place / "ram").read_bytes() == ram


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

    monkeypatch.setattr(folder, "_aside", denied)
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
        monkeypatch.setattr(folder, name, looking(getattr(folder, name)))
    write(place)
    assert seen[-1:] == [True]
    assert not any(seen[:-1])
    assert len(seen) > len(STEPS)


# -- reading -------------------------------------------------------------------


@pytest.fixture
def written(place: Path) -> Path:
    write(place)
    return place


def test_a_folder_that_is_missing_or_no_snapshot(tmp_path: Path):
    refuse(tmp_path / "missing", r"cannot be read: no such file")
    refuse(tmp_path, r"cannot be read: manifest\.json: no such file")
    (tmp_path / "file").touch()
    refuse(tmp_path / "file", r"cannot be read: not a directory")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "ram"])
def test_a_missing_file_is_named(written: Path, name: str):
    (written / name).unlink()
    refuse(written, f"{name}: no such file")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "ram"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_file_of_another_kind_is_refused_at_once(written: Path, name: str, kind: str):
    (written / name).unlink()
    if kind == "pipe":
        os.mkfifo(written / name)
    elif kind == "folder":
        (written / name).mkdir()
    else:
        (written / name).symlink_to("/dev/zero")
    refuse(written, f"{name}: it is no regular file")


def test_a_file_without_end_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "_MOST_JSON", 1000)
    (written / "state.json").write_bytes(b" " * 2000)
    refuse(written, r"state\.json: it is too large")


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe\xfd",
        b"\0" * 50,
        b"{} {}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"a": {"hex": "zz"}}',
        b'{"a": {"hex": "abc"}}',
        b'{"a": {"hex": "\\u0661\\u0661"}}',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_no_json_as_pykvm_writes_it(written: Path, name: str, data: bytes):
    (written / name).write_bytes(data)
    refuse(written, f"{name}: it is not the JSON that pykvm writes")


@pytest.mark.parametrize("data", ["[]", "null", "7", '"text"', "NaN", '{"hex": "00"}'])
@pytest.mark.parametrize("name", ["manifest", "state"])
def test_json_that_is_no_part(written: Path, name: str, data: str):
    (written / f"{name}.json").write_text(data)
    refuse(written, f"part {name} makes no sense: it has no fields")


@pytest.mark.parametrize("number", [1, 3, 1 << 30])
def test_another_format_is_refused_before_anything_else_is_read(written: Path, number: int):
    (written / "manifest.json").write_text(json.dumps({"format": number, "news": []}))
    (written / "state.json").unlink()
    refuse(written, f"has format {number}, this pykvm reads 2")


@pytest.mark.parametrize("number", ["0", "-1", "1e400", "1.0", "true", "null", '"1"', "9" * 4000])
def test_a_format_that_is_no_format(written: Path, number: str):
    (written / "manifest.json").write_text(f'{{"format": {number}}}')
    refuse(written, "part manifest makes no sense: format is")


def test_a_manifest_without_a_format(written: Path):
    (written / "manifest.json").write_text("{}")
    refuse(written, "format is missing")


@settings(max_examples=100)
@given(st.data())
def test_a_truncated_or_damaged_file_is_refused_or_read(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("damaged") / "saved"
    write(place)
    path = place / data.draw(st.sampled_from(["manifest.json", "state.json"]))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(SnapshotError):
        folder.OpenSnapshot(place).close()
