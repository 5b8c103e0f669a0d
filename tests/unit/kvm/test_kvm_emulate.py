"""Every emulated instruction against Python integers; encodings are built here, independently.

Invariant: an instruction that pykvm does not know, or that is cut short, changes nothing and
gives None.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.kvm.emulate import RFLAGS_AC, RFLAGS_ZF, Outcome, State, emulate
from pykvm.kvm.guest_fault import (
    BP_VECTOR,
    GP_VECTOR,
    NM_VECTOR,
    PF_VECTOR,
    UD_VECTOR,
    Fault,
    GuestFault,
)
from pykvm.kvm.instructions import decode, no_operation_length
from pykvm.lean.records import replace

MASK64 = (1 << 64) - 1
RIP = 0xFFFF_FFFF_8100_0000
ALL_FLAGS = 0x8D5 | 2  # OF SF ZF AF PF CF and the reserved bit
FS, GS = 0x7000_0000_0000, 0xFFFF_8880_0000_0000

u64 = st.integers(0, MASK64)
registers = st.lists(u64, min_size=16, max_size=16)


class Cells:
    """Memory that answers any address from one cell, and records each access."""

    def __init__(self, data: bytes, fault: Fault | None = None) -> None:
        self.data = data
        self.fault = fault
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, bytes]] = []

    def read(self, address: int, length: int) -> bytes:
        self.reads.append((address, length))
        if self.fault:
            raise GuestFault(self.fault)
        return self.data[:length]

    def write(self, address: int, data: bytes) -> None:
        if self.fault:
            raise GuestFault(self.fault)
        self.writes.append((address, data))


def state(gpr: list[int] | None = None, **fields: int) -> State:
    fields = {"rip": RIP, "rflags": ALL_FLAGS, "fs_base": FS, "gs_base": GS, **fields}
    return State(gpr=gpr or [0x1000 * n for n in range(16)], **fields)


def copy(of: State) -> State:
    return replace(of, gpr=list(of.gpr))


@st.composite
def memory_operands(draw: st.DrawFn) -> tuple[int, bytes, int, int, int, int]:
    """(REX.X and REX.B, ModRM rm part with SIB and displacement, base, index, scale, offset).

    base is -2 for rip, -1 for none; ModRM's reg field is left 0.
    """
    kind = draw(st.sampled_from(["base", "sib", "absolute", "rip"]))
    wide = draw(st.integers(-(1 << 31), (1 << 31) - 1))
    wide_bytes = wide.to_bytes(4, "little", signed=True)
    if kind == "rip":
        return 0, b"\x05" + wide_bytes, -2, -1, 1, wide
    index = draw(st.sampled_from([n for n in range(16) if n != 4] + [-1]))
    scale = draw(st.integers(0, 3))
    field = 4 if index < 0 else index
    if kind == "absolute":
        sib = scale << 6 | (field & 7) << 3 | 5
        return (field & 8) >> 2, bytes([4, sib]) + wide_bytes, -1, index, 1 << scale, wide
    base = draw(st.integers(0, 15))
    short = draw(st.integers(-128, 127))
    mod, offset, tail = draw(
        st.sampled_from(
            [
                (0, 0, b""),
                (1, short, short.to_bytes(1, "little", signed=True)),
                (2, wide, wide_bytes),
            ]
        )
    )
    if base & 7 == 5 and mod == 0:
        mod, offset, tail = 1, 0, b"\0"
    if kind == "base" and base & 7 != 4:
        return base >> 3, bytes([mod << 6 | base & 7]) + tail, base, -1, 1, offset
    sib = scale << 6 | (field & 7) << 3 | base & 7
    rex = (field & 8) >> 2 | base >> 3
    return rex, bytes([mod << 6 | 4, sib]) + tail, base, index, 1 << scale, offset


def linear(gpr, base, index, scale, offset, end_rip):
    address = offset + (gpr[index] * scale if index >= 0 else 0)
    address += end_rip if base == -2 else gpr[base] if base >= 0 else 0
    return address & MASK64


@given(registers, st.integers(0, 15), st.integers(0, 15), st.sampled_from([2, 4, 8]))
def test_popcnt_of_a_register(gpr, target, source, size):
    rex = 0x40 | (size == 8) << 3 | (target & 8) >> 1 | source >> 3
    code = b"\x66" * (size == 2) + bytes([0xF3, rex, 0x0F, 0xB8])
    code += bytes([0xC0 | (target & 7) << 3 | source & 7])
    now = state(list(gpr))
    assert emulate(code + b"\x90" * 4, now, Cells(b"")) is Outcome.DONE
    value = gpr[source] & ((1 << (8 * size)) - 1)
    expected = list(gpr)
    kept = gpr[target] & ~0xFFFF if size == 2 else 0
    expected[target] = kept | bin(value).count("1")
    assert now.gpr == expected
    assert now.rip == RIP + len(code)
    assert now.rflags == 2 | (0 if value else RFLAGS_ZF)


@given(registers, memory_operands(), st.integers(0, 15), st.binary(min_size=8, max_size=8))
def test_popcnt_of_memory(gpr, operand, target, data):
    rex_bits, tail, base, index, scale, offset = operand
    code = bytes([0xF3, 0x48 | (target & 8) >> 1 | rex_bits, 0x0F, 0xB8])
    code += bytes([tail[0] | (target & 7) << 3]) + tail[1:]
    now, memory = state(list(gpr)), Cells(data)
    assert emulate(code, now, memory) is Outcome.DONE
    assert memory.reads == [(linear(gpr, base, index, scale, offset, RIP + len(code)), 8)]
    assert now.gpr[target] == bin(int.from_bytes(data, "little")).count("1")


@pytest.mark.parametrize(("prefix", "base"), [(b"\x64", FS), (b"\x65", GS), (b"\x2e", 0)])
def test_segment_bases_are_added(prefix, base):
    memory = Cells(b"\xff" * 8)
    emulate(prefix + b"\xf3\x48\x0f\xb8\x03", state(), memory)  # popcnt (%rbx), %rax
    assert memory.reads == [(base + 0x3000, 8)]


def test_address_size_prefix_wraps_at_4_gib():
    memory = Cells(b"\xff" * 8)
    now = state([0, 0, 0, 0x1_2345_6000] + [0] * 12)
    emulate(b"\x67\xf3\x0f\xb8\x43\x10", now, memory)  # popcnt 0x10(%ebx), %eax
    assert memory.reads == [(0x2345_6010, 4)]


@given(registers, u64, u64, st.booleans())
def test_cmpxchg16b(gpr, low, high, equal):
    gpr[7] &= ~15
    if equal:
        gpr[0], gpr[2] = low, high
    before = list(gpr)
    now, memory = state(list(gpr)), Cells((high << 64 | low).to_bytes(16, "little"))
    code = b"\xf0\x48\x0f\xc7\x0f"  # lock cmpxchg16b (%rdi)
    assert emulate(code, now, memory) is Outcome.DONE
    if (before[2], before[0]) == (high, low):
        stored, expected, zero = before[1] << 64 | before[3], before, RFLAGS_ZF
    else:
        stored = high << 64 | low
        expected, zero = [low, before[1], high, *before[3:]], 0
    assert memory.writes == [(gpr[7], stored.to_bytes(16, "little"))]
    assert now.gpr == expected
    assert now.rflags == ALL_FLAGS & ~RFLAGS_ZF | zero
    assert now.rip == RIP + len(code)


def test_cmpxchg16b_needs_alignment():
    now = state()
    now.gpr[7] = 0x7008
    before = copy(now)
    assert emulate(b"\x48\x0f\xc7\x0f", now, Cells(bytes(16))) == Fault(GP_VECTOR, 0)
    assert vars(now) == vars(before)


@pytest.mark.parametrize("code", [b"\x48\x0f\xc7\x0f", b"\xf3\x48\x0f\xb8\x07"])
def test_a_page_fault_changes_nothing(code):
    fault = Fault(PF_VECTOR, 2, 0x7000)
    now = state()
    before = copy(now)
    assert emulate(code, now, Cells(bytes(16), fault)) == fault
    assert vars(now) == vars(before)


def test_int3_is_a_trap():
    now = state()
    assert emulate(b"\xcc\x90", now, Cells(b"")) == Fault(BP_VECTOR)
    assert vars(now) == vars(replace(state(), rip=RIP + 1))


@pytest.mark.parametrize(("cr0", "faults"), [(0, False), (2, False), (8, False), (10, True)])
def test_fwait_faults_if_task_switched_is_set(cr0, faults):
    now = state(cr0=cr0)
    expected = Fault(NM_VECTOR) if faults else Outcome.DONE
    assert emulate(b"\x9b", now, Cells(b"")) == expected
    assert now.rip == RIP + (not faults)


@given(st.integers(0, 0x3F_FFFF))
def test_clac_and_stac(rflags):
    now = state(rflags=rflags)
    assert emulate(b"\x0f\x01\xca", now, Cells(b"")) is Outcome.DONE
    assert vars(now) == vars(state(rflags=rflags & ~RFLAGS_AC, rip=RIP + 3))
    now = state(rflags=rflags)
    assert emulate(b"\x0f\x01\xcb", now, Cells(b"")) is Outcome.DONE
    assert vars(now) == vars(state(rflags=rflags | RFLAGS_AC, rip=RIP + 3))


@given(st.integers(0, (1 << 47) - 1), u64)
def test_sysretq(rcx, r11):
    now = state()
    now.gpr[1], now.gpr[11] = rcx, r11
    gpr = list(now.gpr)
    assert emulate(b"\x48\x0f\x07", now, Cells(b"")) is Outcome.TO_USER
    assert (now.rip, now.gpr) == (rcx, gpr)
    # Neither RF, VM nor a reserved bit, always bit 1.
    assert now.rflags & ~0x7F_FFFF == 0
    assert now.rflags & 0x3002A == 2
    assert now.rflags & 0x3C7FD5 == r11 & 0x3C7FD5


def test_sysretq_faults_on_a_non_canonical_target():
    now = state()
    now.gpr[1] = 1 << 47
    assert emulate(b"\x48\x0f\x07", now, Cells(b"")) == Fault(GP_VECTOR, 0)
    assert now.rip == RIP


@pytest.mark.parametrize(
    "code", [b"\xf0\xf3\x48\x0f\xb8\xc0", b"\xf0\x0f\x01\xca", b"\xf0\x48\x0f\x07", b"\xf0\xcc"]
)
def test_lock_is_undefined_except_for_cmpxchg16b(code):
    assert emulate(code, state(), Cells(b"")) == Fault(UD_VECTOR)


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x0f\xb8\xc0",  # JMPE: POPCNT without F3
        b"\x0f\x07",  # SYSRET to 32-bit mode
        b"\x0f\xc7\x0f",  # CMPXCHG8B
        b"\x48\x0f\xc7\xcf",  # CMPXCHG16B of a register
        b"\x0f\x01\xd0",  # XGETBV
        b"\xd9\xe8",  # FLD1
        b"\x66" * 16 + b"\x9b",  # longer than an instruction may be
    ],
)
def test_unknown_instructions_change_nothing(code):
    now = state()
    assert emulate(code, now, Cells(bytes(16))) is None
    assert vars(now) == vars(state())


@given(st.binary(max_size=20), registers)
def test_any_bytes_are_decoded_within_bounds(code, gpr):
    instruction = decode(code)
    now = state(list(gpr))
    result = emulate(code, now, Cells(bytes(16)))
    if instruction is None:
        assert result is None
        assert vars(now) == vars(state(list(gpr)))
        return
    assert 1 <= instruction.length <= min(len(code), 15)
    # Every byte is needed: without the last one it is no instruction.
    assert decode(code[: instruction.length]) == instruction
    assert decode(code[: instruction.length - 1]) is None
    assert all(0 <= value <= MASK64 for value in [*now.gpr, now.rip])


@pytest.mark.parametrize(
    ("code", "length"),
    [
        (b"\x90\x90\x90", 1),
        (b"\x66\x90", 2),
        (b"\x0f\x1f\x00\xfc", 3),
        (b"\x0f\x1f\x40\x00", 4),
        (b"\x0f\x1f\x44\x00\x00", 5),
        (b"\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00", 10),
        (b"\xf3\x0f\x1e\xfa\x90", 4),
        (b"\xf3\x90", 0),  # PAUSE
        (b"\x41\x90", 0),  # xchg %r8, %rax
        (b"\xfc", 0),
        (b"\x0f\x01\xca", 0),
        (b"\x0f\x1f", 0),
        (b"", 0),
    ],
)
def test_length_of_no_operations(code, length):
    assert no_operation_length(code) == length
