"""The layout of boot data in guest memory, and the guest's memory map.

The data occupy little of the first megabyte, because some kernels are linked to run
there. Linux reserves the first 64 KiB for itself, and copies the data before it
uses them.
"""

from collections.abc import Iterable

from pykvm.lean.records import record
from pykvm.memory import Region

MIB = 1 << 20
PAGE = 4096

MP_FLOATING_POINTER = 0x300
"""In the first KiB, which Linux searches first (``default_find_smp_config``)."""
GDT = 0x500
BOOT_PARAMS = 0x1000
COMMAND_LINE = 0x2000
COMMAND_LINE_SPACE = 0x1000
"""Bytes for the command line and its NUL."""
PVH_START_INFO = 0x3000
"""The start info, its module list and its memory map share one page."""
PML4 = 0x4000
PDPT = 0x5000
PAGE_DIRECTORIES = 0x6000
"""Four pages: 4 GiB by 2 MiB pages."""
BOOT_DATA_END = 0xA000

BASE_MEMORY_END = 0x9FC00
"""End of the conventional memory that the guest may use (639 KiB)."""
MP_TABLE = 0xF0000
"""In the BIOS area, which no guest uses as ordinary memory."""
HIGH_MEMORY = 0x100000

MP_TABLE_SPACE = 0x2000
"""In bytes. It is small, because linkers put a file's ELF header right below 1 MiB."""

BOOT_DATA = ((0, BOOT_DATA_END), (MP_TABLE, MP_TABLE + MP_TABLE_SPACE))
"""Address ranges ``(start, end)`` in which no part of a kernel may lie."""

PLATFORM_START = 0xFEC00000
"""From here on: I/O APIC, local APIC and pages of KVM, but no PCI BAR."""
PLATFORM_END = 1 << 32

E820_RAM = 1
E820_RESERVED = 2


@record
class MapEntry:
    """One range of the guest's memory map: bytes, and an E820 type."""

    start: int
    size: int
    type: int


def memory_map(regions: Iterable[Region], reserved: int = 0) -> list[MapEntry]:
    """The memory map for E820 and PVH, with RAM at ``regions``, by rising address.

    The first region starts at 0 and is at least 1 MiB long. The guest's kernel
    leaves its last ``reserved`` bytes alone.
    """
    entries = [
        MapEntry(0, BASE_MEMORY_END, E820_RAM),
        MapEntry(BASE_MEMORY_END, HIGH_MEMORY - BASE_MEMORY_END, E820_RESERVED),
        MapEntry(PLATFORM_START, PLATFORM_END - PLATFORM_START, E820_RESERVED),
    ]
    for region in regions:
        start = max(region.start, HIGH_MEMORY)
        end = region.end - (0 if region.start else reserved)
        if end > start:
            entries.append(MapEntry(start, end - start, E820_RAM))
        if end < region.end:
            entries.append(MapEntry(end, region.end - end, E820_RESERVED))
    return sorted(entries, key=lambda entry: entry.start)
