"""ELF kernels: headers, loadable segments and the PVH note, all of them untrusted.

Sources: the ELF gABI for the file format; Xen's ``public/elfnote.h`` for
XEN_ELFNOTE_PHYS32_ENTRY, whose value is the physical address of a PVH entry.
"""

import struct
from collections.abc import Iterator

from pykvm.errors import UsageError
from pykvm.lean.records import record
from pykvm.x86.source import Source

ELFCLASS32, ELFCLASS64 = 1, 2
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
XEN_ELFNOTE_PHYS32_ENTRY = 18

MAX_PROGRAM_HEADERS = 512
MAX_NOTES = 1 << 20
"""The number of bytes of a PT_NOTE segment that are read."""

_MACHINES = {8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "s390", 40: "ARM", 183: "arm64"}
_MACHINES |= {243: "RISC-V", 258: "LoongArch"}
# e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum
_HEADER = {ELFCLASS32: struct.Struct("<HHIIIIIHHH"), ELFCLASS64: struct.Struct("<HHIQQQIHHH")}
_PROGRAM_HEADER = {ELFCLASS32: struct.Struct("<8I"), ELFCLASS64: struct.Struct("<IIQQQQQQ")}


@record
class LoadSegment:
    """PT_LOAD: ``file_size`` bytes at ``offset`` go to guest-physical ``address``."""

    offset: int
    address: int
    file_size: int
    memory_size: int

    @property
    def end(self) -> int:
        """First guest-physical address after the segment in memory."""
        return self.address + self.memory_size


@record
class Elf:
    """The parts of an ELF file that a boot needs.

    ``bits`` is 32 or 64; ``entry`` is e_entry; ``pvh_entry`` the PVH note's
    value or None; ``linux_note``: the file has a note whose owner is ``Linux``.
    """

    bits: int
    type: int
    entry: int
    segments: tuple[LoadSegment, ...]
    pvh_entry: int | None
    linux_note: bool


def parse_elf(source: Source) -> Elf:
    """The ELF file in ``source``; UsageError if it is not for x86, or damaged."""
    ident = source.read(0, 64)
    elf_class = ident[4] if len(ident) > 5 else 0
    if not ident.startswith(b"\x7fELF") or elf_class not in _HEADER:
        raise _damaged(source, "its header is invalid")
    if ident[5] != 1:
        raise _foreign(source, "a big-endian machine")
    header = _HEADER[elf_class]
    if len(ident) < 16 + header.size:
        raise _damaged(source, "its header is cut off")
    kind, machine, _, entry, phoff, _, _, _, phentsize, phnum = header.unpack_from(ident, 16)
    if machine not in {EM_386, EM_X86_64}:
        raise _foreign(source, _MACHINES.get(machine, f"machine number {machine}"))
    if elf_class == ELFCLASS64 and machine != EM_X86_64:
        raise _damaged(source, "a 64-bit file for a 32-bit machine")
    if kind in {ET_REL, ET_CORE}:
        what = "an object file or a kernel module" if kind == ET_REL else "a core dump"
        raise UsageError(
            f"{source.name} is {what}, not a kernel", "--kernel takes a linked vmlinux"
        )
    segments, notes = _program_headers(source, elf_class, phoff, phentsize, phnum)
    pvh_entry, linux_note = _read_notes(source, notes)
    bits = 32 if elf_class == ELFCLASS32 else 64
    return Elf(bits, kind, entry, segments, pvh_entry, linux_note)


def has_linux_banner(source: Source, elf: Elf) -> bool:
    """True if a loadable segment contains a text such as ``Linux version 6.1.0 (...``."""
    piece, overlap = 1 << 20, 256
    for segment in elf.segments:
        for start in range(0, segment.file_size, piece):
            length = min(piece + overlap, segment.file_size - start)
            if _is_banner_in(source.read(segment.offset + start, length)):
                return True
    return False


def _is_banner_in(data: bytes) -> bool:
    if b"Linux version " not in data:
        return False
    import re  # few files come here

    return re.search(rb"Linux version \d+\.\d+\S* \(", data) is not None


def _damaged(source: Source, why: str) -> UsageError:
    return UsageError(
        f"{source.name} is an ELF file that cannot be loaded: {why}",
        "it is damaged; build or copy it again",
    )


def _foreign(source: Source, machine: str) -> UsageError:
    return UsageError(
        f"{source.name} is an ELF file for {machine}", "--kernel takes an x86-64 kernel"
    )


@record
class _NoteSegment:
    offset: int
    size: int
    align: int


def _program_headers(
    source: Source, elf_class: int, phoff: int, phentsize: int, phnum: int
) -> tuple[tuple[LoadSegment, ...], list[_NoteSegment]]:
    layout = _PROGRAM_HEADER[elf_class]
    if phnum > MAX_PROGRAM_HEADERS:
        raise _damaged(source, f"it has {phnum} program headers")
    if phnum and phentsize != layout.size:
        raise _damaged(source, f"its program headers have {phentsize} bytes each")
    table = source.read(phoff, phnum * layout.size) if phoff <= source.size else b""
    if len(table) != phnum * layout.size:
        raise _damaged(source, "its program headers lie outside the file")
    loads, notes = [], []
    for fields in layout.iter_unpack(table):
        if elf_class == ELFCLASS64:
            kind, _, offset, _, paddr, filesz, memsz, align = fields
        else:
            kind, offset, _, paddr, filesz, memsz, _, align = fields
        if kind not in {PT_LOAD, PT_NOTE}:
            continue
        if filesz and offset + filesz > source.size:
            raise _damaged(source, "it is shorter than its segments")
        if kind == PT_NOTE:
            notes.append(_NoteSegment(offset, filesz, 8 if align == 8 else 4))
            continue
        if filesz > memsz:
            raise _damaged(source, "a segment is larger in the file than in memory")
        if memsz:
            loads.append(LoadSegment(offset, paddr, filesz, memsz))
    return tuple(loads), notes


def _read_notes(source: Source, segments: list[_NoteSegment]) -> tuple[int | None, bool]:
    """The PVH entry or None, and True if there is a note whose owner is ``Linux``."""
    pvh_entry = None
    linux = False
    for segment in segments:
        data = source.read(segment.offset, min(segment.size, MAX_NOTES))
        for owner, kind, desc in _notes(data, segment.align):
            linux = linux or owner == b"Linux\0"
            if owner == b"Xen\0" and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(desc) in {4, 8}:
                pvh_entry = int.from_bytes(desc, "little")
    return pvh_entry, linux


def _notes(data: bytes, align: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(owner, type, descriptor) of each note; stops at the first that does not fit."""
    position = 0
    while position + 12 <= len(data):
        namesz, descsz, kind = struct.unpack_from("<III", data, position)
        name = position + 12
        desc = name + _round_up(namesz, align) if align == 4 else _round_up(name + namesz, align)
        if desc + descsz > len(data):
            return
        yield data[name : name + namesz], kind, data[desc : desc + descsz]
        position = _round_up(desc + descsz, align)


def _round_up(value: int, align: int) -> int:
    return (value + align - 1) & -align
