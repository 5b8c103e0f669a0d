"""Walks of page tables: right ones against a model, hostile ones without harm."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.kvm.guest_fault import GP_VECTOR, PF_VECTOR, Fault, GuestFault
from pykvm.kvm.paging import NOT_PRESENT, NOT_WRITABLE, GuestView, is_canonical, walk
from pykvm.memory import GuestAddressError, Ram

SIZE = 64 << 10
PRESENT, WRITABLE, LARGE = 1, 2, 0x80
CR3 = 0x1000


def tables(ram: Ram, address: int, leaf: int, *, levels: int = 4, stop: int = 12) -> None:
    """Map ``address`` by tables at 0x1000, 0x2000 …, with ``leaf`` at the level of ``stop``."""
    table = CR3
    for shift in range(3 + 9 * levels, stop - 1, -9):
        entry = leaf if shift == stop else (table + 0x1000) | PRESENT | WRITABLE
        ram.u64[(table >> 3) + ((address >> shift) & 511)] = entry
        table += 0x1000


def view(ram: Ram, cr4: int = 0, cr0: int = 1 << 16) -> GuestView:
    return GuestView(ram, SimpleNamespace(cr0=cr0, cr3=CR3, cr4=cr4))


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("stop", [12, 21, 30])
@given(data=st.data())
def test_walk_finds_the_mapped_address(levels, stop, data):
    ram = Ram.flat(SIZE)
    address = data.draw(st.integers(0, (1 << (12 + 9 * levels)) - 1))
    frame = data.draw(st.integers(0, (1 << 52) - 1)) >> stop << stop
    size_bit = LARGE if stop > 12 else 0
    tables(ram, address, frame | PRESENT | size_bit | 1 << 63, levels=levels, stop=stop)
    expected = frame | address & ((1 << stop) - 1)
    assert walk(ram, CR3 | 0xFFF, address, levels=levels) == expected
    assert walk(ram, CR3, address, levels=levels, write=True) == NOT_WRITABLE
    assert walk(ram, CR3, address ^ (1 << stop), levels=levels) == NOT_PRESENT


@settings(max_examples=examples(300))
@given(
    st.lists(st.integers(0, (1 << 64) - 1), min_size=64, max_size=64),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(1, 40),
    st.booleans(),
)
def test_hostile_tables_end_in_a_fault_or_in_ram(entries, cr3, address, length, small):
    ram = Ram.flat(0x4000)
    for n in range(0x800):
        entry = entries[n % 64] ^ n
        ram.u64[n] = entry & 0x3FFF | 1 if small else entry
    guest = GuestView(ram, SimpleNamespace(cr0=0, cr3=cr3 & 0x3FFF if small else cr3, cr4=0))
    for action in (
        lambda: guest.read(address, length),
        lambda: guest.write(address, bytes(length)),
    ):
        with suppress(GuestFault, GuestAddressError):
            action()


def test_an_access_may_cross_pages_that_are_not_neighbours():
    ram = Ram.flat(SIZE)
    tables(ram, 0x5000, 0x9000 | PRESENT | WRITABLE)
    tables(ram, 0x6000, 0x8000 | PRESENT | WRITABLE)
    view(ram).write(0x5FFC, b"abcdefgh")
    assert ram.read(0x9FFC, 4) + ram.read(0x8000, 4) == b"abcdefgh"
    assert view(ram).read(0x5FFC, 8) == b"abcdefgh"


@pytest.mark.parametrize("second", [0, 0x8000 | PRESENT, 0x8000_0000 | PRESENT | WRITABLE])
def test_a_write_is_all_or_nothing(second):
    ram = Ram.flat(SIZE)
    tables(ram, 0x5000, 0x9000 | PRESENT | WRITABLE)
    tables(ram, 0x6000, second)
    with pytest.raises((GuestFault, GuestAddressError)):
        view(ram).write(0x5FFC, b"abcdefgh")
    assert ram.read(0x9FFC, 4) == bytes(4)


@pytest.mark.parametrize(("leaf", "code"), [(0, 0b10), (0x9000 | PRESENT, 0b11)])
def test_a_page_fault_has_its_error_code(leaf, code):
    ram = Ram.flat(SIZE)
    tables(ram, 0x5000, leaf)
    with pytest.raises(GuestFault) as caught:
        view(ram).write(0x5008, b"x")
    assert caught.value.fault == Fault(PF_VECTOR, code, 0x5008)


def test_write_protection_is_off_without_cr0_wp():
    ram = Ram.flat(SIZE)
    tables(ram, 0x5000, 0x9000 | PRESENT)
    view(ram, cr0=0).write(0x5008, b"x")
    assert ram.read(0x9008, 1) == b"x"


@pytest.mark.parametrize(
    ("address", "levels", "canonical"),
    [
        (0, 4, True),
        (0x7FFF_FFFF_FFFF, 4, True),
        (0x8000_0000_0000, 4, False),
        (0xFFFF_8000_0000_0000, 4, True),
        (0xFFFF_7FFF_FFFF_FFFF, 4, False),
        (0xFFFF_7FFF_FFFF_FFFF, 5, True),
        (0x0100_0000_0000_0000, 5, False),
        (0xFF00_0000_0000_0000, 5, True),
    ],
)
def test_canonical_addresses(address, levels, canonical):
    assert is_canonical(address, levels) == canonical


def test_a_non_canonical_address_is_a_general_protection_fault():
    with pytest.raises(GuestFault) as caught:
        view(Ram.flat(SIZE)).read(1 << 47, 8)
    assert caught.value.fault == Fault(GP_VECTOR, 0)


def test_instruction_bytes_end_where_the_mapping_does():
    ram = Ram.flat(SIZE)
    tables(ram, 0x5000, 0x9000 | PRESENT)
    ram.write(0x9FF0, bytes(range(16)))
    assert view(ram).instruction(0x5000) == bytes(15)
    assert view(ram).instruction(0x5FFA) == bytes(range(10, 16))
    assert view(ram).instruction(0x6000) == b""
    tables(ram, 0x6000, 0x8000 | PRESENT)
    assert view(ram).instruction(0x5FFA) == bytes(range(10, 16)) + bytes(9)
