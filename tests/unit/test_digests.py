"""Hashes of files are remembered, and never those of a changed file."""

import hashlib
import os
from pathlib import Path

import pytest

from pykvm import digests
from pykvm.digests import content_digest


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)  # files of tests are new
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests that were calculated, not remembered."""
    made: list[str] = []
    calculate = digests._hash

    def hash_(fd: int) -> str:
        made.append(calculate(fd))
        return made[-1]

    monkeypatch.setattr(digests, "_hash", hash_)
    return made


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    assert [content_digest(file) for _ in range(3)] == [sha256(b"x" * 3_000_000)] * 3
    assert len(reads) == 1


def test_a_changed_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    assert content_digest(file) == sha256(b"one")
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    # Within one tick of the clock the time of the change may be the same; see the next test.
    if file.stat().st_ctime_ns != before.st_ctime_ns:
        assert content_digest(file) == sha256(b"two")
    other = tmp_path / "other"
    other.write_bytes(b"six")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)
    assert content_digest(file) == sha256(b"six")


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_NS", 1 << 62)
    file = tmp_path / "file"
    file.write_bytes(b"one")
    content_digest(file)
    content_digest(file)
    assert len(reads) == 2


def test_the_memory_is_bounded(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    for number in range(100):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
        content_digest(tmp_path / str(number))
    assert len((cache / "file-digests-1").read_text().splitlines()) == 64
    content_digest(tmp_path / "99")
    assert len(reads) == 100


@pytest.mark.parametrize("content", [b"", b"\xff" * 5000, b"1 2 3 4 5 6\n" * 9, b"\0\n\n \n"])
def test_a_damaged_memory_does_not_matter(tmp_path: Path, cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / "file-digests-1").write_bytes(content)
    file = tmp_path / "file"
    file.write_bytes(b"one")
    assert content_digest(file) == sha256(b"one")
    assert content_digest(file) == sha256(b"one")


def test_without_a_cache_each_call_reads(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    monkeypatch.setenv("PYKVM_CACHE", str(file))
    assert content_digest(file) == sha256(b"one")
    monkeypatch.delenv("PYKVM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "")
    assert content_digest(file) == sha256(b"one")
    assert len(reads) == 2
    with pytest.raises(FileNotFoundError):
        content_digest(tmp_path / "none")
