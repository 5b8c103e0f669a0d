"""Files with holes: guest memory in them, and hashes that do not depend on the holes."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_folder import PAGE

from pykvm.snapshot.content import Range, content_hash, data_ranges, write_memory


def written(ram: bytes, ranges: list[Range] | None = None) -> tuple[bytes, int, bytes]:
    """The content, the blocks and the hash of a file into which ``ram`` was written."""
    with TemporaryFile() as file:
        write_memory(file.fileno(), memoryview(ram), ranges or [(0, len(ram))])
        return file.read(), os.fstat(file.fileno()).st_blocks, content_hash(file.fileno())


@settings(max_examples=50)
@given(st.lists(st.sampled_from([b"\0", b"x", b"\0x", b"x\0"]), max_size=12), st.integers(0, 99))
def test_any_memory_is_read_as_it_was_written(pages: list[bytes], rest: int):
    ram = b"".join(page.ljust(PAGE, page[-1:]) for page in pages) + bytes(rest)
    assert written(ram)[0] == ram


@settings(max_examples=200)
@given(st.data(), st.binary(min_size=1, max_size=9))
def test_the_same_content_has_the_same_hash_wherever_its_holes_are(data, content: bytes):
    """A copy of a folder may have holes elsewhere, as its filesystem likes."""
    size = 16 * PAGE + data.draw(st.sampled_from([0, 1, 512]))
    ram = bytearray(size)
    for at in data.draw(st.lists(st.integers(0, size - len(content)), max_size=4)):
        ram[at : at + len(content)] = content
    with TemporaryFile() as whole, TemporaryFile() as sparse:
        whole.write(ram)
        whole.flush()
        block = data.draw(st.sampled_from([512, 1024, PAGE, 3 * PAGE]))
        os.ftruncate(sparse.fileno(), size)
        for at in range(0, size, block):
            piece = ram[at : at + block]
            if any(piece) or data.draw(st.booleans()):
                os.pwrite(sparse.fileno(), piece, at)
        digest = content_hash(whole.fileno())
        assert content_hash(sparse.fileno()) == digest
        at = data.draw(st.integers(0, size - 1))
        os.pwrite(sparse.fileno(), bytes((ram[at] ^ 1,)), at)
        assert content_hash(sparse.fileno()) != digest
        os.ftruncate(whole.fileno(), size + 1)
        assert content_hash(whole.fileno()) != digest


def test_content_longer_than_a_piece_is_hashed_to_its_end(monkeypatch: pytest.MonkeyPatch):
    whole = os.pread
    ram = os.urandom(3 << 20)
    before = written(ram)[2]
    monkeypatch.setattr(os, "pread", lambda fd, length, at: whole(fd, min(length, 1000), at))
    assert written(ram)[2] == before
    assert written(ram[:-1] + bytes((ram[-1] ^ 1,)))[2] != before


def test_pages_of_zeros_take_no_room():
    ram = bytearray(1024 * PAGE)
    ram[500 * PAGE + 7] = 1
    content, blocks, _ = written(ram)
    assert content == ram
    assert blocks * 512 < len(ram) // 4


def test_memory_that_goes_out_in_pieces_is_whole(monkeypatch: pytest.MonkeyPatch):
    """A write of more than 2 GiB, or on a full host, stores less than it was given."""
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:1000], at))
    ram = os.urandom(2 * PAGE) + bytes(PAGE) + os.urandom(PAGE)
    assert written(ram)[0] == ram


def test_only_the_end_of_the_data_ends_the_ranges(tmp_path: Path):
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 8 * PAGE)
    assert list(data_ranges(file, 8 * PAGE)) == []
    os.pwrite(file, b"x", 0)
    assert [start for start, _ in data_ranges(file, 8 * PAGE)] == [0]
    os.close(file)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        list(data_ranges(file, 8 * PAGE))
    assert caught.value.errno == errno.EBADF
