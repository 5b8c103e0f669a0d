"""Instructions that a KVM without hardware virtualization refuses, carried out in Python.

Such a KVM runs the guest's kernel in its instruction emulator, which was made
for MMIO and knows only part of x86. What it refuses comes to us as an exit;
:func:`emulate` decodes the bytes and applies the effect to a :class:`State`
and a :class:`Memory`. Pure: nothing here knows of KVM. Only 64-bit mode at
CPL 0 is meant. Source of every effect: Intel SDM volume 2.
"""

from collections.abc import Callable
from enum import Enum, auto
from types import MappingProxyType

from pykvm.lean.records import record
from pykvm.lean.typing_names import Final, Protocol

BP_VECTOR: Final = 3
UD_VECTOR: Final = 6
NM_VECTOR: Final = 7
GP_VECTOR: Final = 13
PF_VECTOR: Final = 14

RFLAGS_CF: Final = 1 << 0
RFLAGS_PF: Final = 1 << 2
RFLAGS_AF: Final = 1 << 4
RFLAGS_ZF: Final = 1 << 6
RFLAGS_SF: Final = 1 << 7
RFLAGS_OF: Final = 1 << 11
RFLAGS_AC: Final = 1 << 18
_ARITHMETIC = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF

SYSRET_FLAGS: Final = 0x3C7FD7
"""The bits of R11 that SYSRET loads into RFLAGS: all but RF, VM and what is reserved."""

_CR0_MP = 1 << 1
_CR0_TS = 1 << 3
_MASK64 = (1 << 64) - 1
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 = range(12)


class State:
    """What an instruction can see and change of a vCPU, memory apart.

    ``gpr`` holds the 16 general registers by their number in the encoding:
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15.
    """

    def __init__(
        self,
        gpr: list[int],
        rip: int,
        rflags: int,
        cr0: int = 0,
        fs_base: int = 0,
        gs_base: int = 0,
    ) -> None:
        self.gpr = gpr
        self.rip = rip
        self.rflags = rflags
        self.cr0 = cr0
        self.fs_base = fs_base
        self.gs_base = gs_base


@record
class Fault:
    """An exception to raise in the guest; ``address`` is what CR2 becomes, for #PF."""

    vector: int
    error_code: int | None = None
    address: int | None = None


class GuestFault(Exception):
    """A memory access of the guest's failed; :func:`emulate` turns it into its ``fault``."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Memory(Protocol):
    """Guest memory by linear address. Both methods raise GuestFault as a processor would."""

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at ``address``."""

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at ``address``, all of it or nothing."""


class Outcome(Enum):
    """What is left to do once an instruction has been carried out."""

    DONE = auto()
    """Nothing: go on at ``state.rip``."""
    TO_USER = auto()
    """SYSRET: go on at ``state.rip`` with CS and SS from IA32_STAR, at CPL 3."""


Result = Outcome | Fault


def emulate(code: bytes, state: State, memory: Memory) -> Result | None:
    """Carry out the instruction that ``code`` begins with; None if it is not one of ours.

    With a Fault or None nothing has changed, except that a trap (INT3) leaves
    ``state.rip`` behind the instruction, as the guest's handler expects.
    """
    instruction = decode(code)
    if instruction is None:
        return None
    if instruction.lock and instruction.name != "CMPXCHG16B":
        return Fault(UD_VECTOR)
    handler = _HANDLERS[instruction.name]
    try:
        return handler(instruction, state, memory)
    except GuestFault as stopped:
        return stopped.fault


def no_operation_length(code: bytes) -> int:
    """How many bytes the NOP or ENDBR64 at the start of ``code`` has; 0 if it is neither.

    NOP comes as 90, 66 90 and 0F 1F /0 with any operand and 66 prefixes.
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


_SEGMENT_FS = 0x64
_SEGMENT_GS = 0x65
_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_MAX_LENGTH = 15


class _Bytes:
    """The instruction's bytes with their prefixes taken off; IndexError where they end."""

    def __init__(self, code: bytes) -> None:
        self.code = code[:_MAX_LENGTH]
        self.at = 0
        self.prefixes: set[int] = set()
        self.segment = 0
        self.rex = 0
        while self.code[self.at] in _LEGACY_PREFIXES:
            prefix = self.next()
            self.prefixes.add(prefix)
            if prefix in {_SEGMENT_FS, _SEGMENT_GS}:
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
            # 4 without REX.X means no index; r12 is a fine one.
            index = -1 if index == RSP else index
            base = (sib & 7) | high_base
            if mod == 0 and sib & 7 == 5:
                return reg, Operand(index=index, scale=scale, displacement=self.signed(4))
        displacement = self.signed((0, 1, 4)[mod]) if mod else 0
        return reg, Operand(base=base, index=index, scale=scale, displacement=displacement)


def decode(code: bytes) -> Instruction | None:
    """The instruction at the start of ``code`` if :func:`emulate` knows it, else None."""
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


def effective_address(instruction: Instruction, state: State) -> int:
    """The linear address of a memory operand: segment base + base + index * scale + offset."""
    operand = instruction.operand
    address = operand.displacement
    if operand.rip_relative:
        address += state.rip + instruction.length
    if operand.base >= 0:
        address += state.gpr[operand.base]
    if operand.index >= 0:
        address += state.gpr[operand.index] * operand.scale
    address &= (1 << (8 * instruction.address_size)) - 1
    if instruction.segment == _SEGMENT_FS:
        address += state.fs_base
    elif instruction.segment == _SEGMENT_GS:
        address += state.gs_base
    return address & _MASK64


def _advance(instruction: Instruction, state: State) -> Outcome:
    state.rip = (state.rip + instruction.length) & _MASK64
    return Outcome.DONE


def _int3(instruction: Instruction, state: State, memory: Memory) -> Result:
    _advance(instruction, state)
    return Fault(BP_VECTOR)


def _fwait(instruction: Instruction, state: State, memory: Memory) -> Result:
    # Pending x87 exceptions are not looked at: kernels run FWAIT after FNINIT, with all masked.
    if state.cr0 & _CR0_MP and state.cr0 & _CR0_TS:
        return Fault(NM_VECTOR)
    return _advance(instruction, state)


def _clac(instruction: Instruction, state: State, memory: Memory) -> Result:
    state.rflags &= ~RFLAGS_AC
    return _advance(instruction, state)


def _stac(instruction: Instruction, state: State, memory: Memory) -> Result:
    state.rflags |= RFLAGS_AC
    return _advance(instruction, state)


def _popcnt(instruction: Instruction, state: State, memory: Memory) -> Result:
    size, operand = instruction.operand_size, instruction.operand
    if operand.register >= 0:
        source = state.gpr[operand.register] & ((1 << (8 * size)) - 1)
    else:
        address = effective_address(instruction, state)
        source = int.from_bytes(memory.read(address, size), "little")
    # A 32-bit result clears the upper half of its register, a 16-bit one keeps what was there.
    kept = state.gpr[instruction.reg] & ~0xFFFF if size == 2 else 0
    state.gpr[instruction.reg] = kept | source.bit_count()
    state.rflags = state.rflags & ~_ARITHMETIC | (0 if source else RFLAGS_ZF)
    return _advance(instruction, state)


def _cmpxchg16b(instruction: Instruction, state: State, memory: Memory) -> Result:
    # Not atomic towards the guest's other vCPUs: nothing in Python could be. Assist asks Linux
    # not to use it, so this serves what runs before Linux has read its command line.
    address = effective_address(instruction, state)
    if address % 16:
        return Fault(GP_VECTOR, 0)
    gpr = state.gpr
    current = int.from_bytes(memory.read(address, 16), "little")
    equal = current == gpr[RDX] << 64 | gpr[RAX]
    # The processor writes in both cases, so a read-only page faults in both.
    stored = gpr[RCX] << 64 | gpr[RBX] if equal else current
    memory.write(address, stored.to_bytes(16, "little"))
    if equal:
        state.rflags |= RFLAGS_ZF
    else:
        gpr[RAX], gpr[RDX] = current & _MASK64, current >> 64
        state.rflags &= ~RFLAGS_ZF
    return _advance(instruction, state)


def _sysretq(instruction: Instruction, state: State, memory: Memory) -> Result:
    if state.gpr[RCX] >> 47 not in {0, (1 << 17) - 1}:
        return Fault(GP_VECTOR, 0)
    state.rip = state.gpr[RCX]
    state.rflags = state.gpr[R11] & SYSRET_FLAGS | 2
    return Outcome.TO_USER


_HANDLERS: Final = MappingProxyType[str, Callable[[Instruction, State, Memory], Result]](
    {
        "INT3": _int3,
        "FWAIT": _fwait,
        "CLAC": _clac,
        "STAC": _stac,
        "POPCNT": _popcnt,
        "CMPXCHG16B": _cmpxchg16b,
        "SYSRETQ": _sysretq,
    }
)
