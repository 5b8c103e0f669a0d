"""Loading a kernel: the contents of RAM, and the messages for wrong files."""

import gzip
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_x86_payload import PACKERS, sized
from x86_images import BANNER, LINUX_NOTE, build_bzimage, build_elf, linux_elf, pvh_elf, pvh_note

from pykvm.errors import UsageError
from pykvm.memory import Ram, Region
from pykvm.x86 import LoadedKernel, layout, load_kernel
from pykvm.x86.elf import ET_DYN

MIB = 1 << 20
CPIO = b"070701" + b"0" * 104 + b"TRAILER!!!\0" + bytes(400)


def load(kernel: bytes | Path, size: int = 8 * MIB, **options: object) -> tuple[Ram, LoadedKernel]:
    ram = Ram.flat(size)
    return ram, load_kernel(ram, kernel, **options)  # type: ignore[arg-type]


def refused(kernel: bytes | Path, says: str, size: int = 8 * MIB, **options: object) -> UsageError:
    with pytest.raises(UsageError, match=says) as caught:
        load(kernel, size, **options)
    assert caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_vmlinux_with_initrd_and_command_line(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.write_bytes(linux_elf(b"kernel code", 0x200000))
    initrd.write_bytes(CPIO)
    ram, loaded = load(kernel, initrd=initrd, command_line="console=ttyS0 ü")
    assert loaded.kind == "linux64"
    assert loaded.kernel == (0x200000, 0x200000 + 111)
    assert ram.read(0x200000, 11) == b"kernel code"
    assert loaded.entry.regs["rip"] == 0x200000
    assert loaded.initrd is not None
    start, end = loaded.initrd
    assert ram.read(start, end - start) == CPIO
    assert start % 4096 == 0
    assert 8 * MIB - 4096 < end <= 8 * MIB
    page = ram.read(loaded.entry.regs["rsi"], 4096)
    line = ram.read(struct.unpack_from("<I", page, 0x228)[0], 40)
    assert line.split(b"\0")[0] == "console=ttyS0 ü".encode()
    assert struct.unpack_from("<II", page, 0x218) == (start, len(CPIO))
    pointer = ram.read(layout.MP_FLOATING_POINTER, 16)
    assert ram.read(struct.unpack_from("<I", pointer, 4)[0], 4) == b"PCMP"


def test_a_foreign_kernel_is_entered_through_its_note() -> None:
    for bits in (32, 64):
        ram, loaded = load(pvh_elf(b"code", bits=bits), initrd=b"any module", command_line="hello")
        assert loaded.kind == "pvh"
        assert ram.read(0x100000, 4) == b"code"
        info = ram.read(loaded.entry.regs["rbx"], 56 + 32)
        (line,) = struct.unpack_from("<Q", info, 24)
        assert ram.read(line, 6) == b"hello\0"
        start, size = struct.unpack_from("<QQ", info, 56)
        assert ram.read(start, size) == b"any module"


def test_linux_with_a_pvh_note_is_entered_at_its_64_bit_entry() -> None:
    note = pvh_note(0x100000)
    marked = build_elf([(0x100000, b"code", 4)], notes=[note, LINUX_NOTE])
    banner = build_elf([(0x100000, BANNER, 100)], notes=[note])
    assert load(marked)[1].kind == load(banner)[1].kind == "linux64"
    # 32-bit Linux has no 64-bit entry, but its PVH entry works.
    narrow = build_elf([(0x100000, b"code", 4)], notes=[note, LINUX_NOTE], bits=32)
    assert load(narrow)[1].kind == "pvh"


@pytest.mark.parametrize("name", PACKERS)
def test_a_bzimage_of_every_compression(name: str, tmp_path: Path) -> None:
    image = build_bzimage(sized(PACKERS[name](linux_elf(b"kernel code" * 100))))
    path = tmp_path / "bzImage"
    path.write_bytes(image)
    for kernel in (path, image):
        ram, loaded = load(kernel)
        assert loaded.description == f"Linux 6.1.0-test bzImage ({name}), 64-bit entry"
        assert ram.read(0x200000, 1100) == b"kernel code" * 100
        page = ram.read(loaded.entry.regs["rsi"], 4096)
        assert page[0x1F1:0x210] == image[0x1F1:0x210], "the setup header"
        assert page[0x210] == 0xFF
        assert page[0x250:0x258] == bytes(8)


def test_bss_behind_a_segment_is_not_written() -> None:
    ram = Ram.flat(4 * MIB)
    load_kernel(ram, linux_elf(b"ab", 0x200000))
    assert ram.read(0x200000, 102) == b"ab" + bytes(100)


def two_regions(low: int, high: int) -> Ram:
    """RAM whose upper region lies above 4 GiB, without 3 GiB in between."""
    return Ram(bytearray(low + high), [Region(0, low, 0), Region(1 << 32, high, low)])


def test_an_initrd_goes_above_4_gib_only_if_it_must_and_may() -> None:
    big = CPIO.ljust(3 * MIB, b"\0")
    ram = two_regions(4 * MIB, 4 * MIB)
    loaded = load_kernel(ram, linux_elf(), initrd=big)
    assert loaded.initrd == ((1 << 32) + MIB, (1 << 32) + 4 * MIB)
    page = ram.read(layout.BOOT_PARAMS, 4096)
    assert struct.unpack_from("<II", page, 0xC0) == (1, 0)
    assert ram.read(loaded.initrd[0], len(big)) == big
    loaded = load_kernel(two_regions(4 * MIB, 4 * MIB), linux_elf(), initrd=CPIO)
    assert loaded.initrd is not None
    assert loaded.initrd[1] <= 4 * MIB
    payload = gzip.compress(linux_elf())
    for kernel in (build_bzimage(payload, xloadflags=1), pvh_elf()):
        with pytest.raises(UsageError, match="does not fit"):
            load_kernel(two_regions(4 * MIB, 4 * MIB), kernel, initrd=big)
    above = load_kernel(two_regions(4 * MIB, 4 * MIB), build_bzimage(payload), initrd=big)
    assert above.initrd is not None
    assert above.initrd[0] > 1 << 32


def test_nothing_is_loaded_where_memory_is_reserved() -> None:
    ram = Ram.flat(4 * MIB)
    loaded = load_kernel(ram, linux_elf(), initrd=CPIO, reserved=MIB)
    assert loaded.initrd is not None
    assert loaded.initrd[1] <= 3 * MIB
    with pytest.raises(UsageError, match="needs 4 MiB of memory"):
        load_kernel(Ram.flat(4 * MIB), linux_elf(b"x", 3 * MIB), reserved=MIB)
    with pytest.raises(UsageError, match="at least 1 MiB"):
        load_kernel(Ram.flat(MIB), linux_elf(), reserved=MIB)


def test_an_initrd_stays_below_the_headers_limit() -> None:
    kernel = build_bzimage(gzip.compress(linux_elf()), initrd_addr_max=5 * MIB - 1)
    _, loaded = load(kernel, initrd=CPIO)
    assert loaded.initrd is not None
    assert loaded.initrd[1] <= 5 * MIB


def with_magic(offset: int, magic: bytes, size: int = 0x11000) -> bytes:
    data = bytearray(b"\xa5" * size)
    data[offset : offset + len(magic)] = magic
    return bytes(data)


# The data is part of a test's id, so it has no time of day in it.
@pytest.mark.parametrize(
    ("data", "says", "hint"),
    [
        (b"", "empty", "--kernel takes"),
        (CPIO, "an initrd", "--initrd"),
        (gzip.compress(CPIO, mtime=0), r"an initrd .*gzip", "--initrd"),
        (PACKERS["xz"](CPIO), r"an initrd .*xz", "--initrd"),
        (PACKERS["zstd"](CPIO), r"an initrd .*zstd", "--initrd"),
        (PACKERS["lz4"](CPIO), r"an initrd .*lz4", "--initrd"),
        (PACKERS["bzip2"](CPIO), r"an initrd .*bzip2", "--initrd"),
        (PACKERS["lzma"](CPIO), r"an initrd .*lzma", "--initrd"),
        (gzip.compress(linux_elf(), mtime=0), "an ELF file compressed with gzip", "uncompress"),
        (gzip.compress(b"hello", mtime=0), "compressed with gzip", "--kernel takes"),
        (b"QFI\xfb" + bytes(600), "qcow2", "--disk"),
        (with_magic(0x1FE, b"\x55\xaa"), "disk image", "--disk"),
        (with_magic(512, b"EFI PART"), "GPT", "--disk"),
        (with_magic(0x438, b"\x53\xef"), "ext4", "--disk"),
        (with_magic(0x8001, b"CD001"), "ISO 9660", "--disk"),
        (with_magic(0x10040, b"_BHRfS_M"), "btrfs", "--disk"),
        (with_magic(0x38, b"ARM\x64"), "arm64", "--kernel takes"),
        (b"MZ" + bytes(600), "EFI", "--kernel takes"),
        (b"#!/bin/sh\necho hello\n", "script", "--kernel takes"),
        (b"just some words\n", "text", "--kernel takes"),
        (with_magic(0, b"\x13\x37"), "unknown kind", "--kernel takes"),
        (build_elf([(0x100000, b"", 4)], machine=183), "arm64", "x86-64"),
        (build_elf([(0x100000, b"abc", 4)]), "is not Linux and has", "--kernel takes"),
        (build_elf([(0x100000, b"abc", 4)], bits=32), "32-bit ELF", "--kernel takes"),
        (build_elf([(0x100000, b"abc", 4)], kind=ET_DYN), "shared library", "--kernel takes"),
        (linux_elf()[:200], "shorter", "damaged"),
    ],
)
def test_wrong_kernels_are_named(data: bytes, says: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    error = refused(path, says)
    assert hint in error.hint
    assert str(path) in error.message
    assert refused(data, says).hint == error.hint


@pytest.mark.parametrize(
    ("data", "says", "hint"),
    [
        (b"", "empty", "--initrd"),
        (linux_elf(), "ELF", "--kernel"),
        (build_bzimage(b"x"), "bzImage", "--kernel"),
        (b"QFI\xfb" + bytes(600), "qcow2", "--disk"),
        (with_magic(0x438, b"\x53\xef"), "ext4", "--disk"),
        (b"#!/bin/sh\n", "script", "--initrd"),
        (gzip.compress(linux_elf(), mtime=0), "compressed", "--initrd"),
    ],
)
def test_wrong_initrds_are_named(data: bytes, says: str, hint: str) -> None:
    assert hint in refused(linux_elf(), says, initrd=data).hint


def test_initrds_that_linux_may_understand_are_not_judged() -> None:
    for data in (CPIO, gzip.compress(CPIO), gzip.compress(b"who knows"), b"\x13\x37" * 99):
        assert load(linux_elf(), initrd=data)[1].initrd


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no file")
    refused(tmp_path, "directory")
    refused(Path("/dev/null"), "not a regular file")
    refused(linux_elf(), "directory", initrd=tmp_path)
    with pytest.raises(UsageError, match="null"):
        load_kernel(Ram.flat(MIB), "a\0b")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        os.write(write, linux_elf(b"from a pipe"))
        os.close(write)
        ram, _ = load(Path(f"/dev/fd/{read}"))
    finally:
        os.close(read)
    assert ram.read(0x200000, 11) == b"from a pipe"


@pytest.mark.parametrize(
    ("segment", "says", "hint"),
    [
        ((0x700000, b"x", 0x200000), "needs 9 MiB", "-m 9M"),
        ((0x40000000, b"x", 1), "needs 1025 MiB", "-m 1025M"),
        ((0xC0000000, b"x", 1), "where no guest has memory", "3 GiB"),
        ((1 << 32, b"x", 1), "where no guest has memory", "3 GiB"),
        ((0x200000, b"x", (1 << 64) - 1), "where no guest has memory", "3 GiB"),
        (((1 << 64) - 1, b"x", 1), "where no guest has memory", "3 GiB"),
        (((1 << 64) - 1, b"x", (1 << 64) - 1), "where no guest has memory", "3 GiB"),
        ((0x7000, b"x", 1), "boot data", "1 MiB"),
        ((0, b"x", 1), "boot data", "1 MiB"),
        ((0xE0000, b"x", 0x20000), "boot data", "1 MiB"),
        ((0x9FFF, b"", 2), "boot data", "1 MiB"),
    ],
)
def test_segments_at_impossible_addresses_are_refused(
    segment: tuple[int, bytes, int], says: str, hint: str
) -> None:
    good = (0x100000, b"code", 4)
    error = refused(build_elf([good, segment], notes=[LINUX_NOTE]), says)
    assert hint in error.hint


def test_segments_right_beside_the_boot_data_are_fine() -> None:
    segments = [(0xA000, b"x", 0xE6000), (0xF2000, b"y", 0xE000), (0x100000, b"z", 1)]
    ram, _ = load(build_elf(segments, notes=[LINUX_NOTE]))
    assert [ram.read(address, 1) for address, _, _ in segments] == [b"x", b"y", b"z"]


@pytest.mark.parametrize("entry", [0, 0xFFFFF, 0x100004, 1 << 63])
def test_an_entry_outside_the_kernel_is_refused(entry: int) -> None:
    segments = [(0x100000, b"code", 4)]
    refused(build_elf(segments, entry=entry, notes=[LINUX_NOTE]), "entry at")
    refused(build_elf(segments, notes=[pvh_note(entry, 8)]), "entry at")
    refused(build_elf([], entry=entry, notes=[LINUX_NOTE]), "entry at")


def test_command_lines_that_do_not_fit_are_refused() -> None:
    load(linux_elf(), command_line="x" * 2047)
    refused(linux_elf(), "2048 bytes", command_line="x" * 2048)
    load(pvh_elf(), command_line="x" * 4095)
    refused(pvh_elf(), "4096 bytes", command_line="x" * 4096)
    short = build_bzimage(gzip.compress(linux_elf()), cmdline_size=100)
    load(short, command_line="x" * 100)
    refused(short, "takes 100", command_line="x" * 101)
    endless = build_bzimage(gzip.compress(linux_elf()), cmdline_size=0xFFFFFFFF)
    refused(endless, "takes 4095", command_line="x" * 4096)
    refused(linux_elf(), "NUL", command_line="a\0b")
    refused(linux_elf(), "not text", command_line="\ud800")


def test_initrds_that_do_not_fit_are_refused() -> None:
    error = refused(linux_elf(), "does not fit", initrd=CPIO.ljust(7 * MIB, b"\0"))
    assert "-m" in error.hint
    refused(linux_elf(), "does not fit", size=4 * MIB, initrd=CPIO.ljust(5 * MIB, b"\0"))


@pytest.mark.parametrize("cpus", [0, -1, 255, 1 << 40])
def test_impossible_numbers_of_cpus_are_refused(cpus: int) -> None:
    assert "--cpus" in refused(linux_elf(), "CPUs", cpus=cpus).hint


def test_too_little_ram_is_refused() -> None:
    refused(linux_elf(), "at least 1 MiB", size=MIB // 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"version": 0x0207}, r"boot protocol 2\.07"),
        ({"payload_length": 0}, "ends before"),
        ({"payload_length": 0xFFFFFFFF}, "ends before"),
    ],
)
def test_impossible_bzimages_are_refused(options: dict[str, int], says: str) -> None:
    refused(build_bzimage(gzip.compress(linux_elf()), **options), says)  # type: ignore[arg-type]


def test_the_kernel_inside_a_bzimage_is_judged_too() -> None:
    refused(build_bzimage(b"\x89LZO" + bytes(99)), "LZO")
    refused(build_bzimage(b"what is this"), "unknown compression")
    refused(build_bzimage(gzip.compress(b"no ELF file")), "ELF")
    refused(build_bzimage(gzip.compress(build_elf([(0x100000, b"a", 1)], bits=32))), "32-bit")
    assert load(build_bzimage(linux_elf()))[1].description.endswith("(none), 64-bit entry")
    zero = build_bzimage(gzip.compress(linux_elf()), release=b"")
    assert load(zero)[1].description == "Linux bzImage (gzip), 64-bit entry"


def attempt(kernel: bytes, initrd: bytes | None = None) -> None:
    """Load; anything but success and UsageError fails the test, as does an error that escapes."""
    ram = Ram.flat(4 * MIB)
    with suppress(UsageError):
        loaded = load_kernel(ram, kernel, initrd=initrd)
        assert ram.translate(loaded.kernel[0], loaded.kernel[1] - loaded.kernel[0]) >= 0
    ram.release()


Build = Callable[[], bytes]
IMAGES: list[Build] = [
    linux_elf,
    pvh_elf,
    lambda: pvh_elf(bits=64),
    lambda: build_bzimage(gzip.compress(linux_elf())),
    lambda: build_bzimage(linux_elf()),
    lambda: build_bzimage(pvh_elf()),
]
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=10)


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(IMAGES), CHANGES, st.booleans())
def test_mutants_load_or_get_a_message(
    build: Build, changes: list[tuple[int, int]], header_only: bool
) -> None:
    data = bytearray(build())
    for place, value in changes:
        start = 0x1F0 if data[:2] == b"MZ" else 0
        span = min(len(data) - start, 0x80) if header_only else len(data) - start
        data[start + place % span] = value
    attempt(bytes(data))


@settings(deadline=None)
@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_random_bytes_load_or_get_a_message(kernel: bytes, initrd: bytes) -> None:
    attempt(kernel)
    attempt(linux_elf(), initrd)
