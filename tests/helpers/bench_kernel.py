"""A kernel that consists of code only, and processes that have it in their memory."""

import struct
from pathlib import Path

from pykvm.bench.disk.guest_ram import CODE_SIZE, Code

CODE = Code(0x108000, bytes(i * 37 % 251 for i in range(CODE_SIZE)))


def write_kernel(path: Path, entry: int = CODE.address) -> Path:
    """An ELF file whose one segment has CODE and begins a page before it."""
    offset = 4096
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = CODE.address - 4096
    size = 4096 + CODE_SIZE
    load = struct.pack("<IIQQQQQQ", 1, 7, offset, segment, segment, size, size, 4096)
    path.write_bytes((ident + head + load).ljust(offset + 4096, b"\0") + CODE.data)
    return path
