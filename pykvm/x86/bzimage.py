"""bzImage: a setup header, and a compressed vmlinux behind it.

Source: Documentation/arch/x86/boot.rst of Linux ("The Real-Mode Kernel
Header"). The code in the image does not run; see :mod:`pykvm.x86.payload`.
"""

import struct

from pykvm.errors import UsageError
from pykvm.lean.records import record
from pykvm.x86.source import Source

SETUP_HEADER = 0x1F1
"""Offset of the setup header, both in the image and in the zero page."""
SETUP_HEADER_LIMIT = 0x290
"""The zero page has other fields from here on."""

_HDRS = b"HdrS"
_PAYLOAD_VERSION = 0x0208
"""The first protocol that tells the payload's place (Linux 2.6.24)."""
XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1


@record
class BzImage:
    """The contents of a bzImage's setup header.

    ``setup_header`` is the bytes to copy to the zero page at SETUP_HEADER;
    ``command_line_limit`` excludes the NUL; ``initrd_end`` is the first
    address that the initrd must not reach; ``release`` may be empty.
    """

    setup_header: bytes
    command_line_limit: int
    initrd_end: int
    above_4g: bool
    payload_offset: int
    payload_length: int
    release: str


def is_bzimage(head: bytes) -> bool:
    """True if a file that begins with ``head`` (≥ 0x206 bytes) has a setup header."""
    return head[0x202:0x206] == _HDRS and head[0x1FE:0x200] == b"\x55\xaa"


def parse_bzimage(source: Source) -> BzImage:
    """The bzImage in ``source``; UsageError if it is too old, 32-bit only or damaged."""
    head = source.read(0, SETUP_HEADER_LIMIT).ljust(SETUP_HEADER_LIMIT, b"\0")
    (version,) = struct.unpack_from("<H", head, 0x206)
    if version < _PAYLOAD_VERSION:
        raise UsageError(
            f"{source.name} is a Linux kernel of boot protocol {version >> 8}.{version & 255:02}",
            "pykvm boots protocol 2.08 (Linux 2.6.24) and later; give its vmlinux to --kernel",
        )
    setup_sects = head[SETUP_HEADER] or 4
    offset, length = struct.unpack_from("<II", head, 0x248)
    offset += (setup_sects + 1) * 512
    if not length or offset + length > source.size:
        raise UsageError(
            f"{source.name} is a bzImage that ends before its compressed kernel does",
            "it is damaged; build or copy it again",
        )
    (xloadflags,) = struct.unpack_from("<H", head, 0x236)
    (initrd_addr_max,) = struct.unpack_from("<I", head, 0x22C)
    (cmdline_size,) = struct.unpack_from("<I", head, 0x238)
    # Byte 0x201 is the offset of a two-byte jump over the header, to its end.
    end = min(0x202 + head[0x201], SETUP_HEADER_LIMIT)
    return BzImage(
        setup_header=head[SETUP_HEADER:end],
        command_line_limit=cmdline_size or 255,
        initrd_end=initrd_addr_max + 1,
        # The field appeared with protocol 2.12; before, these bytes were padding.
        above_4g=version >= 0x020C and bool(xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G),
        payload_offset=offset,
        payload_length=length,
        release=_release(source, head),
    )


def _release(source: Source, head: bytes) -> str:
    """The first word of the version text that the header points to."""
    (pointer,) = struct.unpack_from("<H", head, 0x20E)
    text = source.read(pointer + 0x200, 80) if pointer else b""
    word = text.split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")
    return word if word.isascii() and word.isprintable() else ""
