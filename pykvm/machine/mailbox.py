"""The mailbox: a piece of guest RAM in which the agent and its host's side exchange frames.

It lies at the end of the RAM below 4 GiB, and the memory map keeps the guest's
kernel away from it. Being RAM, it belongs to each snapshot. The words of its
first page lie below the rings, so that a copy of RAM by rising address never has
a position without the bytes that it counts.
"""

from collections.abc import Callable

from pykvm.lean.typing_names import Final
from pykvm.memory.ram import Ram
from pykvm.pc.bell import BELL_PLACE

MAILBOX_SIZE: Final = 512 * 1024
"""In bytes: a page of words, and two rings of 252 KiB (docs/decisions/0006-agent-on-a-uart.md)."""


def mailbox_option(address: int) -> str:
    """The option of the kernel's command line that tells the agent the places."""
    return f"pykvm.mailbox={address:#x},{MAILBOX_SIZE},{BELL_PLACE:#x}"


class RamMailbox:
    """The mailbox in the RAM of one machine; see :class:`pykvm.agent.mailbox.Memory`.

    ``connect(ring)`` names the function that a write to the bell calls, in the vCPU's thread.
    """

    size = MAILBOX_SIZE

    def __init__(
        self, ram: Ram, address: int, connect: Callable[[Callable[[], None]], None]
    ) -> None:
        self._ram = ram
        self._start = ram.translate(address, MAILBOX_SIZE)
        assert self._start >= 0
        assert self._start % 8 == 0
        self.connect = connect

    def read(self, offset: int, length: int) -> bytes:
        """See Memory."""
        assert 0 <= offset <= offset + length <= MAILBOX_SIZE
        start = self._start + offset
        return bytes(self._ram.bytes[start : start + length])

    def write(self, offset: int, data: bytes) -> None:
        """See Memory."""
        assert 0 <= offset <= offset + len(data) <= MAILBOX_SIZE
        start = self._start + offset
        self._ram.bytes[start : start + len(data)] = data

    def word(self, offset: int) -> int:
        """See Memory."""
        assert 0 <= offset < MAILBOX_SIZE
        return self._ram.u64[(self._start + offset) // 8]

    def set_word(self, offset: int, value: int) -> None:
        """See Memory."""
        assert 0 <= offset < MAILBOX_SIZE
        self._ram.u64[(self._start + offset) // 8] = value
