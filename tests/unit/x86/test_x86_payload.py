"""Kernel payloads: every compression, with the build's trailing size, damage and bombs."""

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from patience import patience

from pykvm.errors import UsageError
from pykvm.x86.payload import compression, peek, unpack

KERNEL = b"\x7fELF" + b"".join(struct.pack("<QB", n * 0x9E3779B97F4A7C15 % 2**64, n & 7) * 3
                               for n in range(4000))  # fmt: skip
BCJ = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20},
]


def lz4_legacy(data: bytes, block: int = 8 << 20) -> bytes:
    out = struct.pack("<I", 0x184C2102)
    for start in range(0, len(data), block):
        packed = lz4.block.compress(data[start : start + block], store_size=False)
        out += struct.pack("<I", len(packed)) + packed
    return out


def zstd_without_size(data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=False)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=BCJ),
    "lz4": lz4_legacy,
    "zstd": zstd_without_size,
}
TOOLS = {
    "gzip": ["gzip", "-n", "-9", "-c"],
    "bzip2": ["bzip2", "-9", "-c"],
    "lzma": ["xz", "--format=lzma", "-9", "-c"],
    "xz": ["xz", "--check=crc32", "--x86", "--lzma2=dict=8MiB", "-c"],
    "lz4": ["lz4", "-l", "-9", "-", "-"],
    "zstd": ["zstd", "-19", "--ultra", "-c"],
}


def sized(data: bytes) -> bytes:
    """``data`` with the unpacked size behind it, as the x86 build has it for all but gzip."""
    return data + struct.pack("<I", len(KERNEL))


@pytest.mark.parametrize("name", PACKERS)
def test_a_payload_unpacks_with_and_without_its_size_behind(name: str) -> None:
    packed = PACKERS[name](KERNEL)
    assert compression(packed) == name
    assert unpack(packed, "it") == (KERNEL, name)
    assert unpack(sized(packed), "it") == (KERNEL, name)


@pytest.mark.parametrize("name", TOOLS)
def test_the_output_of_the_real_tool_unpacks(name: str) -> None:
    if not shutil.which(TOOLS[name][0]):
        pytest.skip(f"{TOOLS[name][0]} is not installed")
    run = subprocess.run(
        TOOLS[name], input=KERNEL, capture_output=True, check=True, timeout=patience()
    )
    assert unpack(sized(run.stdout), "it") == (KERNEL, name)


def test_several_lz4_blocks_unpack() -> None:
    data = KERNEL * 90
    assert len(data) > 8 << 20
    assert unpack(sized(lz4_legacy(data)), "it")[0] == data


def test_lz4_tool_with_several_blocks() -> None:
    if not shutil.which("lz4"):
        pytest.skip("lz4 is not installed")
    data = KERNEL * 90
    run = subprocess.run(
        TOOLS["lz4"], input=data, capture_output=True, check=True, timeout=patience()
    )
    assert unpack(sized(run.stdout), "it")[0] == data


def test_an_uncompressed_elf_is_unchanged() -> None:
    assert unpack(KERNEL, "it") == (KERNEL, "none")


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_is_stopped(name: str) -> None:
    packed = PACKERS[name](bytes(20 << 20))
    with pytest.raises(UsageError, match="more than 4 MiB"):
        unpack(packed, "it", limit=4 << 20)
    assert len(peek(packed, 512)) == 512


@pytest.mark.parametrize("name", PACKERS)
def test_a_payload_of_exactly_the_limit_is_allowed(name: str) -> None:
    packed = PACKERS[name](KERNEL)
    assert unpack(packed, "it", limit=len(KERNEL))[0] == KERNEL
    with pytest.raises(UsageError):
        unpack(packed, "it", limit=len(KERNEL) - 1)


@pytest.mark.parametrize("name", PACKERS)
def test_cut_off_data_are_an_error(name: str) -> None:
    with pytest.raises(UsageError, match=rf"it cannot be unpacked \({name}\)"):
        unpack(PACKERS[name](KERNEL)[:-40], "it")


def test_lzo_and_unknown_compressions_are_named() -> None:
    with pytest.raises(UsageError, match="LZO, which is not supported"):
        unpack(b"\x89LZO\0\r\n\x1a\n" + bytes(64), "it")
    with pytest.raises(UsageError, match="unknown compression"):
        unpack(b"nonsense", "it")
    with pytest.raises(UsageError, match="unknown compression"):
        unpack(b"", "it")


@given(
    st.sampled_from(sorted(PACKERS)),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6),
    st.integers(0, 4000),
)
def test_mutants_unpack_or_get_a_message(
    name: str, changes: list[tuple[int, int]], keep: int
) -> None:
    data = bytearray(PACKERS[name](KERNEL[:3000]))
    for place, value in changes:
        data[4 + place % (len(data) - 4)] = value
    with suppress(UsageError):
        assert len(unpack(bytes(data[:keep]), "it", limit=1 << 20)[0]) <= 1 << 20
    assert len(peek(bytes(data[:keep]))) <= 512


@given(st.sampled_from(sorted(PACKERS)), st.binary(max_size=200))
def test_random_bytes_after_a_magic(name: str, data: bytes) -> None:
    with suppress(UsageError):
        unpack(PACKERS[name](b"")[:4] + data, "it", limit=1 << 20)
