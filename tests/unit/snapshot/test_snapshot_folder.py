"""A snapshot's folder is read only if pykvm may have written it."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_folder import write

from pykvm.errors import PykvmError
from pykvm.snapshot import folder
from pykvm.snapshot.fields import SnapshotError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "saved"


def refuse(place: Path, words: str) -> PykvmError:
    with pytest.raises(SnapshotError, match=words) as caught:
        folder.OpenSnapshot(place)
    assert caught.value.hint
    assert caught.value.message.isprintable()
    return caught.value


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
    monkeypatch.setattr(folder, "MOST_JSON", 1000)
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


@pytest.mark.parametrize("number", [1, 2, 1 << 30])
def test_another_format_is_refused_before_anything_else_is_read(written: Path, number: int):
    (written / "manifest.json").write_text(json.dumps({"format": number, "news": []}))
    (written / "state.json").unlink()
    refuse(written, f"has format {number}, this pykvm reads 3")


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


def test_all_files_are_of_one_folder(written: Path):
    """Even if a different snapshot takes its name while it is read."""
    (written / "disk0.map").write_bytes(b"one")
    with folder.OpenSnapshot(written) as opened:
        written.rename(written.with_name("gone"))
        write(written)
        (written / "disk0.map").write_bytes(b"other")
        with open(opened.open("disk0.map"), "rb") as file:
            assert file.read() == b"one"
    refuse(written.with_name("nothing"), "no such file")


@pytest.mark.parametrize("name", ["state.json", "ram"])
def test_a_changed_byte_is_found(written: Path, name: str):
    hashes = folder.read_manifest(written)["hashes"]
    folder.verify(written, hashes)
    content = bytearray((written / name).read_bytes())
    content[len(content) // 2] ^= 1
    (written / name).write_bytes(content)
    with pytest.raises(SnapshotError, match=f"has changed since .* its {name} is different"):
        folder.verify(written, hashes)
    (written / name).unlink()
    with pytest.raises(SnapshotError, match=f"{name}: no such file"):
        folder.verify(written, hashes)
