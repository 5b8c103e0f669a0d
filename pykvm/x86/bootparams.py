"""The zero page (``struct boot_params``), for Linux's 64-bit entry.

Source: Documentation/arch/x86/zero-page.rst and boot.rst of Linux.
"""

import struct
from collections.abc import Sequence

from pykvm.x86.bzimage import SETUP_HEADER
from pykvm.x86.layout import MapEntry

SIZE = 4096
EXT_RAMDISK_IMAGE = 0xC0
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
E820_MAX = 128
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
RAMDISK_IMAGE = 0x218
CMD_LINE_PTR = 0x228
HARDWARE_SUBARCH = 0x23C
SETUP_DATA = 0x250
LOADED_HIGH = 1 << 0


def build(
    memory: Sequence[MapEntry],
    command_line: int,
    initrd: tuple[int, int] | None,
    setup_header: bytes = b"",
) -> bytes:
    """The 4096 bytes of a zero page.

    ``command_line`` is the guest-physical address of the line, ``initrd`` its
    (start, end), ``setup_header`` the header of the bzImage that the kernel
    came from; a bare vmlinux gets a minimal one.
    """
    assert len(memory) <= E820_MAX
    page = bytearray(SIZE)
    if setup_header:
        page[SETUP_HEADER : SETUP_HEADER + len(setup_header)] = setup_header
    else:
        struct.pack_into("<H4sH", page, 0x1FE, 0xAA55, b"HdrS", 0x020F)
    # 0xff: a loader without a number of its own.
    page[TYPE_OF_LOADER] = 0xFF
    page[LOADFLAGS] |= LOADED_HIGH
    struct.pack_into("<Q", page, SETUP_DATA, 0)
    struct.pack_into("<IQ", page, HARDWARE_SUBARCH, 0, 0)
    struct.pack_into("<I", page, CMD_LINE_PTR, command_line)
    start, end = initrd or (0, 0)
    size = end - start
    struct.pack_into("<II", page, RAMDISK_IMAGE, start & 0xFFFFFFFF, size & 0xFFFFFFFF)
    struct.pack_into("<II", page, EXT_RAMDISK_IMAGE, start >> 32, size >> 32)
    page[E820_ENTRIES] = len(memory)
    for index, entry in enumerate(memory):
        place = E820_TABLE + 20 * index
        struct.pack_into("<QQI", page, place, entry.start, entry.size, entry.type)
    return bytes(page)
