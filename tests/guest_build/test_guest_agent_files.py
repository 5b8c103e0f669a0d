"""Files that the guest's agent takes and gives."""

import os
import shutil
import struct
from pathlib import Path

import pytest
from agent_process import (
    DATA,
    DONE,
    ERROR,
    PULL,
    PUSH,
    SIGNAL,
    STDIN,
    STDIN_EOF,
    Host,
)

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


def test_a_file_is_pushed_whole_with_its_mode(host: Host, tmp_path: Path):
    path, data = tmp_path / "tool", os.urandom(300000)
    host.send(PUSH, struct.pack("<I", 0o751) + bytes(path))
    host.feed(data)
    assert not path.exists()
    host.send(STDIN_EOF)
    assert host.finish().end == (DONE, struct.pack("<I", 0o751))
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (data, 0o751)
    assert list(tmp_path.iterdir()) == [path]


def test_a_pushed_file_takes_the_place_of_a_file_or_link_and_of_nothing_else(
    host: Host, tmp_path: Path
):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    os.mkfifo(tmp_path / "pipe")
    refused = {"pipe": b"not an ordinary file", "": b"Is a directory", "no/x": b"No such file"}
    for name in ("old", "link"):
        host.send(PUSH, struct.pack("<I", 0o600) + bytes(tmp_path / name))
        host.send(STDIN, name.encode())
        host.send(STDIN_EOF)
        assert (host.finish().end or (0,))[0] == DONE
        assert (tmp_path / name).read_bytes() == name.encode()
    for name, words in refused.items():
        host.send(PUSH, struct.pack("<I", 0o600) + bytes(tmp_path / name))
        kind, text = host.finish().end or (0, b"")
        assert (kind, words in text) == (ERROR, True), text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "old", "pipe"]


def test_a_push_that_is_cancelled_or_full_leaves_nothing(host: Host, tmp_path: Path):
    host.send(PUSH, struct.pack("<I", 0o600) + bytes(tmp_path / "file"))
    host.send(STDIN, b"data")
    host.send(SIGNAL, b"\1")
    job = host.finish()
    assert job.end == (ERROR, b"the transfer was cancelled")
    assert list(tmp_path.iterdir()) == []


def test_files_are_pulled_whole_with_their_mode(host: Host, tmp_path: Path):
    data = os.urandom(3000000)
    for name, content in (("file", data), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o640)
        host.send(PULL, bytes(tmp_path / name))
        job = host.finish()
        assert (job.end, job.output[DATA] == content) == ((DONE, struct.pack("<I", 0o640)), True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (b"/none/such", b"/none/such: No such file or directory"),
        (b"/", b"/: Is a directory"),
        (b"", b"1 to 4063"),
        (b"/tmp\0x", b"NUL"),
        (b"/" + b"x" * 4063, b"1 to 4063"),
    ],
)
def test_a_file_that_cannot_be_pulled_or_pushed_is_an_error_of_the_request(
    host: Host, path: bytes, words: bytes
):
    host.send(PULL, path, 1)
    host.send(PUSH, bytes(4) + path, 2)
    for id in (1, 2):
        kind, text = host.finish(id).end or (0, b"")
        assert kind == ERROR
        assert words in text or id == 2
    assert host.run("echo alive") == (0, b"alive\n", b"")


def test_a_pull_without_end_can_be_cancelled(host: Host):
    host.send(PULL, b"/dev/zero", 1)
    while not host.jobs[1].output[DATA]:
        host.step()
    host.send(SIGNAL, b"\1", 1)
    assert host.finish(1, read=False).end == (ERROR, b"the transfer was cancelled")
