"""ELF kernels: valid ones are parsed, and invalid ones only cause a message."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from x86_images import BANNER, LINUX_NOTE, build_elf, linux_elf, pvh_elf, pvh_note

from pykvm.errors import UsageError
from pykvm.x86.elf import ET_CORE, ET_DYN, ET_REL, Elf, LoadSegment, has_linux_banner, parse_elf
from pykvm.x86.source import Source


def source(data: bytes) -> Source:
    return Source(data, "'file'", "--kernel")


def parse(data: bytes) -> Elf:
    return parse_elf(source(data))


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_entry_and_notes(bits: int) -> None:
    data = build_elf(
        [(0x100000, b"code", 4), (0x200000, b"data", 0x5000), (0x300000, b"", 0)],
        entry=0x100002,
        notes=[(b"GNU\0", 3, b"x" * 20), pvh_note(0x100001, bits // 8)],
        bits=bits,
    )
    elf = parse(data)
    assert (elf.bits, elf.entry, elf.pvh_entry, elf.linux_note) == (bits, 0x100002, 0x100001, False)
    first, second = elf.segments
    assert data[first.offset : first.offset + first.file_size] == b"code"
    assert (second.address, second.memory_size, second.end) == (0x200000, 0x5000, 0x205000)


def test_linux_is_recognized_by_its_note_or_its_banner() -> None:
    assert parse(linux_elf()).linux_note
    for text, found in ((BANNER, True), (b"Linux version %s (%s)", False)):
        data = build_elf([(0x100000, b"x" * ((1 << 20) - 10) + text, 1 << 21)])
        assert not parse(data).linux_note
        assert has_linux_banner(source(data), parse(data)) is found


def test_notes_of_alignment_8() -> None:
    note = struct.pack("<III4s", 4, 16, 5, b"GNU\0") + bytes(16)
    note += struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x1234)
    data = bytearray(build_elf([(0x100000, b"abcd", 4)], notes=[(b"", 0, bytes(len(note) - 12))]))
    data[-len(note) :] = note
    struct.pack_into("<Q", data, 64 + 56 + 48, 8)
    assert parse(bytes(data)).pvh_entry == 0x1234


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x7fELF", "header"),
        (b"\x7fELF\x02\x01" + bytes(20), "cut off"),
        (b"\x7fELF\x07\x01" + bytes(60), "header is invalid"),
        (b"\x7fELF\x02\x02" + bytes(60), "big-endian"),
        (build_elf([(0, b"", 1)], machine=183), "arm64"),
        (build_elf([(0, b"", 1)], machine=243), "RISC-V"),
        (build_elf([(0, b"", 1)], machine=9999), "9999"),
        (build_elf([(0, b"", 1)], machine=3), "32-bit machine"),
        (build_elf([(0, b"", 1)], kind=ET_REL), "kernel module"),
        (build_elf([(0, b"", 1)], kind=ET_CORE), "core dump"),
        (build_elf([(0x100000, b"1234", 3)]), "larger in the file"),
        (build_elf([(0x100000, b"1234", 4)])[:-1], "shorter"),
        (build_elf([(0x100000, b"1234", 4)])[:100], "outside the file"),
        (build_elf([(0x100000, b"", 4)] * 513), "513 program headers"),
    ],
)
def test_wrong_files_are_named(data: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(data)
    assert caught.value.hint


@pytest.mark.parametrize("field", [(32, "<Q"), (54, "<H"), (56, "<H")])
@pytest.mark.parametrize("value", [5, 0x7FFF, 0xFFFF])
def test_hostile_header_fields(field: tuple[int, str], value: int) -> None:
    data = bytearray(linux_elf())
    struct.pack_into(field[1], data, field[0], value * (1 << 47 if field[1] == "<Q" else 1))
    with pytest.raises(UsageError):
        parse(bytes(data))


def test_hostile_segment_fields_do_not_wrap() -> None:
    for place in (8, 32, 40):
        data = bytearray(linux_elf())
        struct.pack_into("<Q", data, 64 + place, (1 << 64) - 8)
        try:
            elf = parse(bytes(data))
        except UsageError:
            continue
        # A memory size may be any number: the loader compares it with the guest's RAM.
        assert elf.segments[0].memory_size == (1 << 64) - 8


@given(st.binary(max_size=400))
def test_random_bytes_after_the_magic(data: bytes) -> None:
    for start in (b"", b"\x7fELF", b"\x7fELF\x02\x01\x01", b"\x7fELF\x01\x01\x01"):
        with suppress(UsageError):
            parse(start + data)


MUTANTS = [
    linux_elf(),
    pvh_elf(),
    pvh_elf(bits=64),
    build_elf([(0x100000, b"abcd", 9)], notes=[LINUX_NOTE, pvh_note(1)], kind=ET_DYN),
]


@given(
    st.sampled_from(MUTANTS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    st.integers(0, 500),
)
def test_mutants_parse_to_segments_inside_the_file_or_to_a_message(
    image: bytes, changes: list[tuple[int, int]], keep: int
) -> None:
    data = bytearray(image)
    for place, value in changes:
        data[place % len(data)] = value
    mutant = bytes(data[: len(data) if keep > 300 else keep])
    try:
        elf = parse(mutant)
    except UsageError:
        return
    has_linux_banner(source(mutant), elf)
    for segment in elf.segments:
        assert isinstance(segment, LoadSegment)
        assert segment.file_size == 0 or segment.offset + segment.file_size <= len(mutant)
        assert segment.file_size <= segment.memory_size
