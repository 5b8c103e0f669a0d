"""A guest of 35 bytes that adds what it gets to a number in its RAM, and answers with the sum.

Only the guest's RAM and registers hold the number. So the answers prove where a machine goes on.
"""

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from patience import patience
from x86_images import pvh_elf

from pykvm.machine import Machine, MachineConfig

SUM = 0x30_0000
MIB = 1 << 20

# 32-bit code without paging.
CODE = bytes.fromhex(
    "66 ba fd 02"  # mov dx, 0x2fd: wait for a byte on COM2
    "ec a8 01 74 f7"
    "66 ba f8 02 ec"  # mov dx, 0x2f8: take it
    "0f b6 c0 01 05 00 00 30 00"  # add [SUM], al
    "a1 00 00 30 00 ee c1 e8 08 ee"  # send the lower half of the sum, little-endian
    "eb dd"
)


def counting_config(folder: Path, **options: Any) -> MachineConfig:
    """The configuration of machines with this guest; its kernel is written to ``folder``."""
    kernel = folder / "counting"
    if not kernel.exists():
        kernel.write_bytes(pvh_elf(CODE))
    return MachineConfig(kernel=kernel, **{"memory": 8 * MIB, **options})


class Counting:
    """The conversation with the guest of ``machine``. A reset needs a new one."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._answers: SimpleQueue[int] = SimpleQueue()
        machine.channel = self._sink()

    def add(self, number: int) -> int:
        """Add ``number``, up to 255; the lower 16 bits of the sum."""
        self.machine.board.channel.feed(bytes((number,)))
        low, high = (self._answers.get(timeout=patience(20)) for _ in range(2))
        return low | high << 8

    def _sink(self) -> Callable[[bytes], None]:
        def take(data: bytes) -> None:
            for byte in data:
                self._answers.put(byte)

        return take
