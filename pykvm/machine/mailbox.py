"""The mailbox: a piece of guest RAM in which the agent and its host's side exchange frames.

It lies at the end of the RAM below 4 GiB, and the memory map keeps the guest's
kernel away from it. Being RAM, it belongs to each snapshot. The words of its
first page lie below the rings, so that a copy of RAM by rising address never has
a position without the bytes that it counts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from pykvm.lean.typing_names import Final
from pykvm.memory.ram import Ram
from pykvm.pc.bell import BELL_PLACE

MAILBOX_SIZE: Final = 512 * 1024
"""In bytes: a page of words, and two rings of 252 KiB (docs/decisions/0006-agent-on-a-uart.md)."""


def mailbox_option(address: int) -> str:
    """The option of the kernel's command line that tells the agent the places."""
    return f"pykvm.mailbox={address:#x},{MAILBOX_SIZE},{BELL_PLACE:#x}"


class Mailbox:
    """The mailbox in the RAM of one machine. Any thread may call any method.

    One client at a time uses it: the one that :meth:`open` was called for last.
    """

    def __init__(self, ram: Ram, address: int) -> None:
        self.start = ram.translate(address, MAILBOX_SIZE)
        assert self.start >= 0
        assert self.start % 8 == 0
        self.ram = ram
        self.lock = Lock()
        self.user: RamMailbox | None = None
        self._bell: Callable[[], None] = lambda: None

    def open(self) -> "RamMailbox":
        """The memory for a new client. What an earlier one writes from now on is dropped."""
        with self.lock:
            self.user = RamMailbox(self)
            return self.user

    def connect(self, bell: Callable[[], None]) -> None:
        """Call ``bell`` when the guest rings, in the vCPU's thread."""
        self._bell = bell

    def rung(self) -> None:
        """The guest rings."""
        self._bell()

    @contextmanager
    def held(self, *, put_back: bool = False) -> Iterator[None]:
        """A context in which no client writes, while RAM is copied or put back.

        ``put_back``: afterwards the positions in the mailbox are others, so the client's are void.
        """
        with self.lock:
            if put_back:
                self.user = None
            yield


class RamMailbox:
    """The mailbox as memory for one client; see :class:`pykvm.agent.mailbox.Memory`."""

    size = MAILBOX_SIZE

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._ram = mailbox.ram
        self._start = mailbox.start

    def read(self, offset: int, length: int) -> bytes:
        """See Memory."""
        assert 0 <= offset <= offset + length <= MAILBOX_SIZE
        start = self._start + offset
        return bytes(self._ram.bytes[start : start + length])

    def write(self, offset: int, data: bytes) -> None:
        """See Memory."""
        assert 0 <= offset <= offset + len(data) <= MAILBOX_SIZE
        start = self._start + offset
        with self._mailbox.lock:
            if self._mailbox.user is self:
                self._ram.bytes[start : start + len(data)] = data

    def word(self, offset: int) -> int:
        """See Memory."""
        assert 0 <= offset < MAILBOX_SIZE
        return self._ram.u64[(self._start + offset) // 8]

    def set_word(self, offset: int, value: int) -> None:
        """See Memory."""
        assert 0 <= offset < MAILBOX_SIZE
        with self._mailbox.lock:
            if self._mailbox.user is self:
                self._ram.u64[(self._start + offset) // 8] = value
