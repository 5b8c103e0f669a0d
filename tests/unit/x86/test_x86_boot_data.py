"""The structures a kernel reads: memory map, zero page, start info, MP table, first registers."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.memory import Ram, Region
from pykvm.memory.guest import GIB, MIB
from pykvm.memory.guest import layout as ram_layout
from pykvm.x86 import bootparams, layout, mptable, pvh
from pykvm.x86.cpu import Segment, descriptor, long_mode_entry, pvh_entry
from pykvm.x86.layout import E820_RAM, E820_RESERVED, MapEntry, memory_map


def test_memory_map_of_a_small_and_a_large_guest() -> None:
    low = [
        MapEntry(0, 0x9FC00, E820_RAM),
        MapEntry(0x9FC00, 0x60400, E820_RESERVED),
        MapEntry(MIB, 63 * MIB, E820_RAM),
        MapEntry(0xFEC00000, 0x1400000, E820_RESERVED),
    ]
    assert memory_map([Region(0, 64 * MIB, 0)]) == low
    big = memory_map(ram_layout(5 * GIB))
    assert big[2] == MapEntry(MIB, 3 * GIB - MIB, E820_RAM)
    assert big[4] == MapEntry(4 * GIB, 2 * GIB, E820_RAM)


def test_a_piece_at_the_end_of_low_memory_is_kept_from_the_kernel() -> None:
    entries = memory_map(ram_layout(5 * GIB), 512 << 10)
    assert entries[2:4] == [
        MapEntry(MIB, 3 * GIB - MIB - (512 << 10), E820_RAM),
        MapEntry(3 * GIB - (512 << 10), 512 << 10, E820_RESERVED),
    ]
    assert entries[5] == MapEntry(4 * GIB, 2 * GIB, E820_RAM)


@given(st.integers(256, 1 << 24).map(lambda pages: pages * 4096))
def test_memory_map_covers_the_ram_and_overlaps_nowhere(size: int) -> None:
    entries = memory_map(ram_layout(size))
    assert all(a.start + a.size <= b.start for a, b in pairwise(entries))
    usable = sum(entry.size for entry in entries if entry.type == E820_RAM)
    assert usable == size - 0x60400


def test_areas_of_the_boot_data_do_not_overlap() -> None:
    areas = [
        (layout.MP_FLOATING_POINTER, 16),
        (layout.GDT, 48),
        (layout.BOOT_PARAMS, bootparams.SIZE),
        (layout.COMMAND_LINE, layout.COMMAND_LINE_SPACE),
        (layout.PVH_START_INFO, 4096),
        (layout.PML4, 4096),
        (layout.PDPT, 4096),
        (layout.PAGE_DIRECTORIES, 4 * 4096),
        (layout.MP_TABLE, layout.MP_TABLE_SPACE),
    ]
    assert all(a + n <= b for (a, n), (b, _) in pairwise(areas))
    for start, size in areas:
        assert any(low <= start and start + size <= high for low, high in layout.BOOT_DATA)


def test_zero_page_of_a_bare_vmlinux() -> None:
    memory = memory_map([Region(0, 32 * MIB, 0)])
    page = bootparams.build(memory, 0x2000, (0x1F00000, 0x1F00123))
    assert len(page) == 4096
    assert struct.unpack_from("<H4s", page, 0x1FE) == (0xAA55, b"HdrS")
    assert page[0x210] == 0xFF
    assert page[0x211] & 1
    assert struct.unpack_from("<II", page, 0x218) == (0x1F00000, 0x123)
    assert struct.unpack_from("<I", page, 0x228) == (0x2000,)
    assert page[0x1EF] == 0, "the sentinel: a dirty zero page would be wiped by Linux"
    assert page[0x1E8] == len(memory)
    table = [
        MapEntry(*struct.unpack_from("<QQI", page, 0x2D0 + 20 * n)) for n in range(page[0x1E8])
    ]
    assert table == memory


def test_zero_page_keeps_the_setup_header_but_no_pointer_of_it() -> None:
    page = bootparams.build([], 0x2000, None, setup_header=b"\xee" * 0x7B)
    assert page[0x1F1:0x1F2] == b"\xee"
    assert page[0x26B] == 0xEE
    assert page[0x26C] == 0
    assert page[0x210] == 0xFF
    assert struct.unpack_from("<QQ", page, 0x248)[1] == 0, "setup_data"
    assert struct.unpack_from("<II", page, 0x218) == (0, 0), "no initrd"


def test_zero_page_with_an_initrd_above_4_gib() -> None:
    start, end = 0x1_2345_6000, 0x2_2345_7000
    page = bootparams.build([], 0x2000, (start, end))
    low = struct.unpack_from("<II", page, 0x218)
    high = struct.unpack_from("<II", page, 0xC0)
    assert (high[0] << 32 | low[0], high[1] << 32 | low[1]) == (start, end - start)


@pytest.mark.parametrize("initrd", [None, (0x100000, 0x180000)])
def test_pvh_start_info(initrd: tuple[int, int] | None) -> None:
    memory = memory_map(ram_layout(4 * GIB))
    info = pvh.build(0x3000, memory, 0x2000, initrd)
    magic, version, flags, modules, modlist, line, rsdp, memmap, entries, _ = struct.unpack_from(
        "<IIIIQQQQII", info
    )
    assert (magic, version, flags, line, rsdp) == (0x336EC578, 1, 0, 0x2000, 0)
    assert modules == bool(initrd)
    if initrd:
        assert struct.unpack_from("<QQQQ", info, modlist - 0x3000) == (0x100000, 0x80000, 0, 0)
    got = [struct.unpack_from("<QQII", info, memmap - 0x3000 + 24 * n) for n in range(entries)]
    assert got == [(entry.start, entry.size, entry.type, 0) for entry in memory]
    assert len(info) < 4096


SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def mp_entries(table: bytes) -> list[bytes]:
    """The entries of an MP table, checked for length, count and checksum."""
    signature, length, revision, _ = struct.unpack_from("<4sHBB", table)
    count, lapic = struct.unpack_from("<HI", table, 34)
    assert (signature, length, revision, lapic) == (b"PCMP", len(table), 4, 0xFEE00000)
    assert sum(table) & 0xFF == 0
    found, position = [], 44
    while position < len(table):
        size = SIZES[table[position]]
        found.append(table[position : position + size])
        position += size
    assert position == len(table)
    assert len(found) == count
    return found


@pytest.mark.parametrize("cpus", [1, 2, 8, mptable.MAX_CPUS])
def test_mp_table_describes_cpus_buses_and_io_apic(cpus: int) -> None:
    entries = mp_entries(mptable.configuration(cpus))
    processors = [entry for entry in entries if entry[0] == 0]
    assert [entry[1] for entry in processors] == list(range(cpus))
    assert [entry[3] for entry in processors] == [3] + [1] * (cpus - 1), "enabled; first boots"
    assert [entry[1:] for entry in entries if entry[0] == 1] == [b"\0PCI   ", b"\1ISA   "]
    (io_apic,) = [entry for entry in entries if entry[0] == 2]
    assert io_apic[1] == cpus, "an APIC id of its own"
    assert struct.unpack_from("<I", io_apic, 4) == (0xFEC00000,)


def test_mp_table_routes_interrupts_as_kvm_does() -> None:
    entries = mp_entries(mptable.configuration(1))
    interrupts = [struct.unpack("<BBHBBBB", entry) for entry in entries if entry[0] == 3]
    isa = [(source, pin) for _, kind, flags, bus, source, _, pin in interrupts if bus == 1]
    assert isa == [(irq, irq) for irq in range(16) if irq != 2]
    pci = [fields for fields in interrupts if fields[3] == 0]
    assert all(kind == 0 and flags == 0xF for _, kind, flags, *_ in pci), "level, active low"
    routes = [(f[4] >> 2, (f[4] & 3) + 1, f[6]) for f in pci]
    assert routes == [(slot, 1, 16 + slot % 8) for slot in range(32)], "every slot, empty or not"
    local = [struct.unpack("<BBHBBBB", entry) for entry in entries if entry[0] == 4]
    assert [(f[1], f[5], f[6]) for f in local] == [(3, 0xFF, 0), (1, 0xFF, 1)]


@given(st.integers(0, 31), st.integers(1, 4))
def test_pci_interrupts_land_on_the_last_eight_pins(device: int, pin: int) -> None:
    assert 16 <= mptable.pci_gsi(device, pin) <= 23
    assert mptable.pci_gsi(device + 8, pin) == mptable.pci_gsi(device, pin)


def test_floating_pointer() -> None:
    pointer = mptable.floating_pointer(0xF0000)
    assert len(pointer) == 16
    assert struct.unpack_from("<4sIBB", pointer) == (b"_MP_", 0xF0000, 1, 4)
    assert sum(pointer) & 0xFF == 0
    assert pointer[11] == 0, "a configuration table is present"


def translate(ram: Ram, cr3: int, address: int) -> int:
    """Walk the page tables as the CPU does; no 1 GiB pages allowed."""
    table = cr3
    for shift in (39, 30, 21):
        (entry,) = struct.unpack("<Q", ram.read(table + 8 * (address >> shift & 511), 8))
        assert entry & 3 == 3, "present and writable"
        table = entry & ~0xFFF
        if entry & 0x80:
            assert shift == 21
            return (entry & ~0x1FFFFF) + (address & 0x1FFFFF)
    raise AssertionError("a 4 KiB page")


@given(st.integers(0, (4 << 30) - 1))
def test_long_mode_maps_4_gib_to_itself(address: int) -> None:
    ram = Ram.flat(MIB)
    state = long_mode_entry(ram, 0x1000000, 0x1000)
    assert translate(ram, state.sregs.cr3, address) == address


def test_long_mode_entry_state() -> None:
    ram = Ram.flat(MIB)
    state = long_mode_entry(ram, 0x1000000, 0x1000)
    sregs = state.sregs
    assert state.regs == {"rip": 0x1000000, "rsi": 0x1000, "rflags": 2}
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x80000011, 0x20, 0x500)
    assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db) == (0x10, 1, 0)
    assert {s.selector for s in (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs)} == {0x18}
    assert state.msrs[0x2FF] == 0x806
    table = ram.read(sregs.gdt.base, sregs.gdt.limit + 1)
    assert struct.unpack_from("<Q", table, 0x10) == (0x00AF9B000000FFFF,)
    assert struct.unpack_from("<Q", table, 0x18) == (0x00CF93000000FFFF,)


def test_pvh_entry_state() -> None:
    ram = Ram.flat(MIB)
    state = pvh_entry(ram, 0x100000, 0x3000)
    sregs = state.sregs
    assert state.regs == {"rip": 0x100000, "rbx": 0x3000, "rflags": 2}
    assert (sregs.cr0 & ~0x10, sregs.cr3, sregs.cr4, sregs.efer) == (1, 0, 0, 0)
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.limit, sregs.cs.base) == (0, 1, 0xFFFFFFFF, 0)
    assert (sregs.tr.type, sregs.tr.limit) == (0xB, 0x67)
    table = ram.read(sregs.gdt.base, sregs.gdt.limit + 1)
    assert struct.unpack_from("<Q", table, 0x10) == (0x00CF9B000000FFFF,)


def test_descriptor_with_base_and_byte_limit() -> None:
    segment = Segment(0x12345678, 0xABCDE, 8, type=0x9, dpl=3, s=0)
    assert descriptor(segment) == 0x120AE9345678BCDE
