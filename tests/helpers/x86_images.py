"""Builders of small kernels for the x86 tests: valid and invalid ELF files and bzImages."""

import struct

from pykvm.x86.elf import ET_EXEC

Segment = tuple[int, bytes, int]
"""Guest-physical address, bytes in the file, size in memory."""
Note = tuple[bytes, int, bytes]

LINUX_NOTE: Note = (b"Linux\0", 0x100, b"\0\0\0\0")
BANNER = b"Linux version 6.1.0-test (someone@somewhere) #1"


def pvh_note(entry: int, size: int = 4) -> Note:
    return (b"Xen\0", 18, entry.to_bytes(size, "little"))


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def notes_bytes(notes: list[Note]) -> bytes:
    return b"".join(
        struct.pack("<III", len(owner), len(desc), kind) + _pad(owner) + _pad(desc)
        for owner, kind, desc in notes
    )


def build_elf(
    segments: list[Segment],
    *,
    entry: int = 0x100000,
    notes: list[Note] | None = None,
    bits: int = 64,
    kind: int = ET_EXEC,
    machine: int | None = None,
) -> bytes:
    """An ELF file with one PT_LOAD for each of ``segments`` and a PT_NOTE if ``notes``."""
    header, entry_size = (64, 56) if bits == 64 else (52, 32)
    count = len(segments) + bool(notes)
    blobs: list[tuple[int, int, bytes, int]] = [(1, *segment) for segment in segments]
    if notes:
        data = notes_bytes(notes)
        blobs.append((4, 0, data, len(data)))
    table, body = b"", b""
    position = header + entry_size * count
    for what, address, data, memory in blobs:
        if bits == 64:
            fields = (what, 7, position, address, address, len(data), memory, 4)
            table += struct.pack("<IIQQQQQQ", *fields)
        else:
            fields = (what, position, address, address, len(data), memory, 7, 4)
            table += struct.pack("<8I", *fields)
        body += data
        position += len(data)
    machine = machine or (62 if bits == 64 else 3)
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    layout = "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH"
    fields = (kind, machine, 1, entry, header, 0, 0, header, entry_size, count, 0, 0, 0)
    return ident + struct.pack(layout, *fields) + table + body


def linux_elf(code: bytes = b"\xf4" * 64, address: int = 0x200000) -> bytes:
    """A 64-bit ELF file that looks like Linux, with its entry at its first byte."""
    return build_elf([(address, code, len(code) + 100)], entry=address, notes=[LINUX_NOTE])


def pvh_elf(code: bytes = b"\xf4" * 16, address: int = 0x100000, bits: int = 32) -> bytes:
    """A kernel other than Linux, with a PVH note."""
    notes = [pvh_note(address)]
    return build_elf([(address, code, len(code))], entry=address, notes=notes, bits=bits)


def build_bzimage(
    payload: bytes,
    *,
    version: int = 0x020F,
    setup_sects: int = 4,
    cmdline_size: int = 2047,
    initrd_addr_max: int = 0x7FFFFFFF,
    xloadflags: int = 0b11,
    payload_length: int | None = None,
    release: bytes = b"6.1.0-test (x@y) #1",
) -> bytes:
    """A bzImage whose protected-mode part is 128 zero bytes and ``payload``."""
    head = bytearray((setup_sects + 1) * 512)
    head[:2] = b"MZ"
    head[0x1F1] = setup_sects
    struct.pack_into("<HBB4sH", head, 0x1FE, 0xAA55, 0xEB, 0x6A, b"HdrS", version)
    struct.pack_into("<H", head, 0x20E, 0x300)
    head[0x500 : 0x500 + len(release)] = release
    head[0x211] = 0x01
    struct.pack_into("<I", head, 0x22C, initrd_addr_max)
    struct.pack_into("<IBBHI", head, 0x230, 0x200000, 1, 0, xloadflags, cmdline_size)
    length = len(payload) if payload_length is None else payload_length
    struct.pack_into("<IIQ", head, 0x248, 128, length, 0xDEADBEEF)
    return bytes(head) + bytes(128) + payload + b"tail"
