"""The trampoline's code, and where it may go."""

from types import SimpleNamespace

import pytest

from pykvm.kvm import trampoline
from pykvm.kvm.paging import GuestView
from pykvm.memory import Ram

KERNEL = 0xFFFF_FFFF_8100_0000
AT, HANDLER, LSTAR = KERNEL + 0x1210, KERNEL + 0xAF0, KERNEL + 0x40
NO_EXECUTE = 1 << 63
CODE = 0x8000  # guest-physical


def guest(*leaves: int) -> tuple[Ram, GuestView]:
    """KERNEL mapped, from its first page on, by the page-table entries ``leaves``."""
    ram = Ram.flat(0x10000)
    for table, shift in ((0x1000, 39), (0x2000, 30), (0x3000, 21)):
        ram.u64[(table >> 3) + ((KERNEL >> shift) & 511)] = (table + 0x1000) | 1
    for number, leaf in enumerate(leaves):
        ram.u64[(0x4000 >> 3) + number] = leaf
    return ram, GuestView(ram, SimpleNamespace(cr0=0, cr3=0x1000, cr4=0))


def test_jumps_lead_to_the_handler_and_to_lstar():
    code = trampoline.build(AT, HANDLER, LSTAR)
    jne = code.index(b"\x0f\x85") + 2
    assert AT + jne + 4 + int.from_bytes(code[jne : jne + 4], "little", signed=True) == HANDLER
    assert code[-5] == 0xE9
    assert AT + len(code) + int.from_bytes(code[-4:], "little", signed=True) == LSTAR
    assert int.from_bytes(code[5:9], "little", signed=True) + (1 << 64) == LSTAR


def test_return_by_iret_marks_r11():
    plain = trampoline.build(AT, HANDLER, LSTAR)
    marked = trampoline.build(AT, HANDLER, LSTAR, return_by_iret=True)
    assert len(marked) == len(plain) + 7
    # or $0x10000, %r11
    assert b"\x49\x81\xcb\x00\x00\x01\x00" in marked
    assert len(marked) <= 48


@pytest.mark.parametrize("bad", [0, 0x1000, 0xFFFF_FFFF_7FFF_FFFF, 0xFFFF_8880_0000_0000])
def test_only_kernel_addresses_are_accepted(bad):
    assert trampoline.build(bad, HANDLER, LSTAR) == b""
    assert trampoline.build(AT, bad, LSTAR) == b""
    assert trampoline.build(AT, HANDLER, bad) == b""


def test_it_is_recognized_for_its_own_lstar_only():
    code = trampoline.build(AT, HANDLER, LSTAR)
    assert trampoline.is_trampoline(code, LSTAR)
    assert not trampoline.is_trampoline(code, LSTAR + 1)
    assert not trampoline.is_trampoline(b"\x0f\x1f\x00\xfc", LSTAR)


def test_room_is_padding_behind_code():
    ram, view = guest(CODE | 1, CODE + 0x1000 | 1)
    ram.write(CODE + 0x1100, b"\x90" * 5 + b"\xcc" * 70)
    # 16-byte aligned, behind the code, in the second page; 48 bytes are free there.
    assert trampoline.find_room(view, KERNEL + 0x123) == KERNEL + 0x1110
    assert ram.read(CODE + 0x1110, 48) == b"\xcc" * 48


@pytest.mark.parametrize(
    ("leaf", "contents"),
    [
        (CODE | 1, b"\x90" * 0x100 + b"\xcc" * 63 + b"\x90"),  # too little
        (CODE | 1, b"\xcc" * 0x1000),  # nothing but padding: Linux may free the page
        (CODE | 1 | NO_EXECUTE, b"\x90" + b"\xcc" * 100),
        (0, b"\x90" + b"\xcc" * 100),
        (0x8000_0000 | 1, b""),  # not RAM
    ],
)
def test_memory_without_free_padding_has_no_room(leaf, contents):
    ram, view = guest(leaf)
    ram.write(CODE, contents)
    assert trampoline.find_room(view, KERNEL) == 0
