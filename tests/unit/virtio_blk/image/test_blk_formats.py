"""Images that are not raw are refused, unless the user asks for raw."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import zstandard
from blk_host import require_direct
from blk_image import refusal
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import CacheMode, Image, ImageFormat
from pykvm.devices.virtio_blk.image.formats import format_of

FORMATS = {
    b"QFI\xfb\0\0\0\1": "qcow",
    b"QFI\xfb\0\0\0\2": "qcow2",
    b"QFI\xfb\0\0\0\3": "qcow2",
    b"QED\0": "QED",
    b"KDMV": "VMDK",
    b"COWD": "VMDK",
    b"# Disk DescriptorFile\nversion=1\n": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe": "VDI",
    b"WithoutFreeSpace": "Parallels",
    b"WithouFreSpacExt": "Parallels",
    b"Bochs Virtual HD Image": "Bochs",
    b"LUKS\xba\xbe\0\1": "LUKS",
}


@pytest.mark.parametrize("size", [100, 4096, 4096 + 100])
@pytest.mark.parametrize("magic", FORMATS, ids=FORMATS.values())
def test_a_format_is_refused_unless_its_user_insists(path: Path, magic: bytes, size: int) -> None:
    """Whatever its size, and opened for reading too."""
    path.write_bytes(magic.ljust(size, b"\0"))
    for readonly in (False, True):
        message = refusal(path, readonly)
        assert f"like a {FORMATS[magic]} image" in message
        assert "format=raw" in message
        if FORMATS[magic] != "LUKS":
            assert f"qemu-img convert -O raw {path} " in message
    if size == 4096:
        with closing(Image(path, format=ImageFormat.RAW)) as image:
            assert (image.size, image.notices) == (4096, [])
    assert path.read_bytes() == magic.ljust(size, b"\0")


@given(st.binary(max_size=200))
def test_other_bytes_are_raw(head: bytes) -> None:
    assert format_of(b"\xeb\x63" + head) == ("VDI" if head[62:66] == b"\x7f\x10\xda\xbe" else "")


def test_a_part_of_the_magic_bytes_is_not_enough() -> None:
    heads = (b"", b"QFI", b"LUKS\xba", b"vhdxfil", b"WithoutFreeSpac", bytes(64) + b"\x7f\x10\xda")
    assert [format_of(head) for head in heads] == [""] * len(heads)


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("gzip", gzip.compress),
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("zstd", zstandard.ZstdCompressor().compress),
    ],
)
def test_compressed_data_are_noticed(
    path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    """They may be intended for the guest, so they are served with a notice."""
    path.write_bytes(compress(b"x" * 10000).ljust(4096, b"\0"))
    with closing(Image(path)) as image:
        assert len(image.notices) == 1
        assert f"begins like {name} data" in image.notices[0]
    with closing(Image(path, format=ImageFormat.RAW)) as image:
        assert image.notices == []


def test_a_format_on_a_block_device(block_device: str) -> None:
    with open(block_device, "r+b", buffering=0) as file:
        file.write(b"QFI\xfb\0\0\0\3".ljust(4096, b"\0"))
    for cache in (CacheMode.WRITEBACK, CacheMode.NONE):
        assert "like a qcow2 image" in refusal(block_device, cache=cache)
        Image(block_device, cache=cache, format=ImageFormat.RAW).close()


@pytest.mark.parametrize("cache", [CacheMode.NONE, CacheMode.DIRECTSYNC])
def test_a_format_shows_in_blocks_too(path: Path, cache: CacheMode) -> None:
    require_direct(path.parent)
    path.write_bytes(b"QFI\xfb\0\0\0\3".ljust(4096))
    assert "like a qcow2 image" in refusal(path, cache=cache)
