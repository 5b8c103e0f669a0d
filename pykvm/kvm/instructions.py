"""Decodes the instructions that KVM's emulator refuses and pykvm knows. Pure.

Only 64-bit mode. Source: Intel SDM volume 2.
"""

from pykvm.lean.records import record
from pykvm.lean.typing_names import Final

SEGMENT_FS: Final = 0x64
SEGMENT_GS: Final = 0x65
"""Prefixes that add the base of FS or GS to an address."""

_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_MAX_LENGTH = 15
_NO_INDEX = 4


@record
class Operand:
    """A ModRM operand: a register, or a memory address in parts (-1: part absent)."""

    register: int = -1
    base: int = -1
    index: int = -1
    scale: int = 1
    displacement: int = 0
    rip_relative: bool = False


@record
class Instruction:
    """A decoded instruction: ``reg`` and ``operand`` come from ModRM, sizes are in bytes."""

    name: str
    length: int
    operand_size: int = 8
    address_size: int = 8
    segment: int = 0
    lock: bool = False
    reg: int = 0
    operand: Operand = Operand()


class _Bytes:
    """The bytes of an instruction behind its prefixes; IndexError where they end."""

    def __init__(self, code: bytes) -> None:
        self.code = code[:_MAX_LENGTH]
        self.at = 0
        self.prefixes: set[int] = set()
        self.segment = 0
        self.rex = 0
        while self.code[self.at] in _LEGACY_PREFIXES:
            prefix = self.next()
            self.prefixes.add(prefix)
            if prefix in {SEGMENT_FS, SEGMENT_GS}:
                self.segment = prefix
        if self.code[self.at] & 0xF0 == 0x40:
            self.rex = self.next()

    def next(self) -> int:
        value = self.code[self.at]
        self.at += 1
        return value

    def signed(self, size: int) -> int:
        end = self.at + size
        if end > len(self.code):
            raise IndexError
        value = int.from_bytes(self.code[self.at : end], "little", signed=True)
        self.at = end
        return value

    def modrm(self) -> tuple[int, Operand]:
        """The reg field and the r/m operand, extended by REX (SDM volume 2, §2.1.5, §2.2.1)."""
        modrm = self.next()
        mod, reg, rm = modrm >> 6, (modrm >> 3) & 7, modrm & 7
        reg |= (self.rex & 4) << 1
        high_base = (self.rex & 1) << 3
        if mod == 3:
            return reg, Operand(register=rm | high_base)
        if mod == 0 and rm == 5:
            return reg, Operand(displacement=self.signed(4), rip_relative=True)
        base, index, scale = rm | high_base, -1, 1
        if rm == 4:
            sib = self.next()
            scale = 1 << (sib >> 6)
            index = ((sib >> 3) & 7) | (self.rex & 2) << 2
            # 4 without REX.X means no index; with REX.X it is r12.
            index = -1 if index == _NO_INDEX else index
            base = (sib & 7) | high_base
            if mod == 0 and sib & 7 == 5:
                return reg, Operand(index=index, scale=scale, displacement=self.signed(4))
        displacement = self.signed((0, 1, 4)[mod]) if mod else 0
        return reg, Operand(base=base, index=index, scale=scale, displacement=displacement)


def decode(code: bytes) -> Instruction | None:
    """The instruction at the start of ``code`` ; None if pykvm does not know it."""
    try:
        return _decode(_Bytes(code))
    except IndexError:
        return None


def _decode(code: _Bytes) -> Instruction | None:
    opcode = code.next()
    if opcode != 0x0F:
        name = {0xCC: "INT3", 0x9B: "FWAIT"}.get(opcode)
        return _finish(code, name)
    opcode = code.next()
    if opcode == 0x01:
        return _finish(code, {0xCA: "CLAC", 0xCB: "STAC"}.get(code.next()))
    if opcode == 0x07 and code.rex & 8:
        return _finish(code, "SYSRETQ")
    if opcode == 0xB8 and 0xF3 in code.prefixes:
        return _finish(code, "POPCNT", *code.modrm())
    if opcode == 0xC7 and code.rex & 8:
        reg, operand = code.modrm()
        if reg & 7 == 1 and operand.register < 0:
            return _finish(code, "CMPXCHG16B", reg, operand)
    return None


def _finish(
    code: _Bytes, name: str | None, reg: int = 0, operand: Operand | None = None
) -> Instruction | None:
    if name is None:
        return None
    size = 8 if code.rex & 8 else (2 if 0x66 in code.prefixes else 4)
    return Instruction(
        name=name,
        length=code.at,
        operand_size=size,
        address_size=4 if 0x67 in code.prefixes else 8,
        segment=code.segment,
        lock=0xF0 in code.prefixes,
        reg=reg,
        operand=operand or Operand(),
    )


def no_operation_length(code: bytes) -> int:
    """The length of the NOP or ENDBR64 at the start of ``code``; 0 if it is neither.

    A NOP is one of 90, 66 90, and 0F 1F /0 with any operand and 66 prefixes.
    """
    if code[:4] == b"\xf3\x0f\x1e\xfa":
        return 4
    try:
        rest = _Bytes(code)
        if rest.prefixes - {0x66, 0x2E} or rest.rex:
            return 0
        opcode = rest.next()
        if opcode == 0x90:
            return rest.at
        if opcode == 0x0F and rest.next() == 0x1F:
            rest.modrm()
            return rest.at
    except IndexError:
        pass
    return 0
