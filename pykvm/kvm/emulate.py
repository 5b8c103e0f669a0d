"""Instructions that a KVM without hardware virtualization refuses, carried out in Python.

Such a KVM runs the guest's kernel in its instruction emulator, which was made
for MMIO and knows only part of x86. A refused instruction is an exit.
:func:`emulate` decodes its bytes and applies the effect to a :class:`State`
and a :class:`Memory`. Pure: nothing here calls KVM. Only for 64-bit mode at
CPL 0. Source of every effect: Intel SDM volume 2.
"""

from collections.abc import Callable
from enum import Enum, auto
from types import MappingProxyType

from pykvm.kvm.guest_fault import (
    BP_VECTOR,
    GP_VECTOR,
    NM_VECTOR,
    UD_VECTOR,
    Fault,
    GuestFault,
)
from pykvm.kvm.instructions import SEGMENT_FS, SEGMENT_GS, Instruction, decode
from pykvm.lean.typing_names import Final, Protocol

RFLAGS_CF: Final = 1 << 0
RFLAGS_PF: Final = 1 << 2
RFLAGS_AF: Final = 1 << 4
RFLAGS_ZF: Final = 1 << 6
RFLAGS_SF: Final = 1 << 7
RFLAGS_OF: Final = 1 << 11
RFLAGS_AC: Final = 1 << 18
_ARITHMETIC = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF

SYSRET_FLAGS: Final = 0x3C7FD7
"""The bits of R11 that SYSRET loads into RFLAGS: all but RF, VM and the reserved bits."""

_CR0_MP = 1 << 1
_CR0_TS = 1 << 3
_MASK64 = (1 << 64) - 1
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 = range(12)


class State:
    """The registers of a vCPU that an instruction can see and change.

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


class Memory(Protocol):
    """Guest memory by linear address. Both methods raise GuestFault as a processor would."""

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at ``address``."""

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at ``address``, all of it or nothing."""


class Outcome(Enum):
    """The next step once an instruction has been carried out."""

    DONE = auto()
    """Continue at ``state.rip``."""
    TO_USER = auto()
    """SYSRET: continue at ``state.rip`` with CS and SS from IA32_STAR, at CPL 3."""


Result = Outcome | Fault


def emulate(code: bytes, state: State, memory: Memory) -> Result | None:
    """Carry out the instruction at the start of ``code``; None if pykvm does not know it.

    If the result is a Fault or None, nothing has changed, except that a trap (INT3) leaves
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
    if instruction.segment == SEGMENT_FS:
        address += state.fs_base
    elif instruction.segment == SEGMENT_GS:
        address += state.gs_base
    return address & _MASK64


def _advance(instruction: Instruction, state: State) -> Outcome:
    state.rip = (state.rip + instruction.length) & _MASK64
    return Outcome.DONE


def _int3(instruction: Instruction, state: State, memory: Memory) -> Result:
    _advance(instruction, state)
    return Fault(BP_VECTOR)


def _fwait(instruction: Instruction, state: State, memory: Memory) -> Result:
    # Pending x87 exceptions do not matter: kernels run FWAIT after FNINIT, which masks them all.
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
    # A 32-bit result clears the upper half of its register, a 16-bit one keeps the other 48 bits.
    kept = state.gpr[instruction.reg] & ~0xFFFF if size == 2 else 0
    state.gpr[instruction.reg] = kept | source.bit_count()
    state.rflags = state.rflags & ~_ARITHMETIC | (0 if source else RFLAGS_ZF)
    return _advance(instruction, state)


def _cmpxchg16b(instruction: Instruction, state: State, memory: Memory) -> Result:
    # Not atomic towards the guest's other vCPUs: nothing in Python could be. linux_options.py
    # tells Linux not to use it, so only code that runs before Linux has read its command line
    # comes here.
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
