"""Calls of the C library."""

import errno
import os
from pathlib import Path

import pytest

from pykvm.host.libc import _abi, abi_build, keep_library, system_call

NR_GETPID = 39
NR_WRITE = 1
NR_PIPE2 = 293


def test_the_committed_declarations_are_those_of_their_source(tmp_path: Path) -> None:
    abi_build.write_abi(tmp_path / "_abi.py")
    assert Path(_abi.__file__).read_text() == (tmp_path / "_abi.py").read_text()


def test_numbers_and_bytes_reach_the_kernel_both_ways() -> None:
    assert system_call(NR_GETPID) == os.getpid()
    ends = bytearray(8)
    assert system_call(NR_PIPE2, ends, os.O_CLOEXEC) == 0
    reading, writing = (int.from_bytes(ends[at : at + 4], "little") for at in (0, 4))
    try:
        assert system_call(NR_WRITE, writing, b"words", 5) == 5
        assert os.read(reading, 10) == b"words"
    finally:
        os.close(reading)
        os.close(writing)


def test_failure_is_an_os_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        system_call(NR_WRITE, -1, b"", 0)
    assert raised.value.errno == errno.EBADF


def test_a_missing_library_is_an_os_error() -> None:
    with pytest.raises(OSError, match="libpykvm-none"):
        keep_library("libpykvm-none.so.0")
