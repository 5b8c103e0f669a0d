"""Two rings of frames in guest RAM; guest/init/channel.c describes them.

The guest can write everywhere in them at any time. So this side keeps its own
positions, checks those of the guest, and copies what it reads.
"""

from pykvm.lean.typing_names import Final, Protocol

PAGE: Final = 4096
MARK: Final = int.from_bytes(b"pykvmbx3", "little")
"""The first word, once the agent speaks over the mailbox."""
TO_GUEST_HEAD, TO_GUEST_TAIL, TO_HOST_HEAD, TO_HOST_TAIL = 64, 128, 192, 256
AWAKE = 320
_MOST = (1 << 64) - 1


class Memory(Protocol):
    """The mailbox as memory of ``size`` bytes. The guest may write it at any time."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data``."""
        ...

    def word(self, offset: int) -> int:
        """The u64 at ``offset``, a multiple of 8, read at once."""
        ...

    def set_word(self, offset: int, value: int) -> None:
        """Store a u64 at once, after all earlier stores and before all later loads."""
        ...


class Rings:
    """The host's side of the rings in ``memory``. The caller locks."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._size = (memory.size - PAGE) // 2 // PAGE * PAGE
        self._head = memory.word(TO_GUEST_HEAD)
        self._tail = memory.word(TO_HOST_TAIL)

    @property
    def used(self) -> bool:
        """The agent speaks over these rings."""
        return self._memory.word(0) == MARK

    @property
    def awake(self) -> bool:
        """The guest looks into its ring before it sleeps, so nobody has to wake it."""
        return self._memory.word(AWAKE) != 0

    def put(self, frame: bytes) -> bool | None:
        """Append ``frame`` to the ring to the guest; False if there is no room for it now.

        None: the guest's position makes no sense.
        """
        used = self._head - self._memory.word(TO_GUEST_TAIL)
        if not 0 <= used <= self._size or self._head + len(frame) > _MOST:
            return None
        if self._size - used < len(frame):
            return False
        at = self._head % self._size
        before_end = frame[: self._size - at]
        self._memory.write(PAGE + at, before_end)
        if len(before_end) < len(frame):
            self._memory.write(PAGE, frame[len(before_end) :])
        self._head += len(frame)
        self._memory.set_word(TO_GUEST_HEAD, self._head)
        return True

    def take(self) -> bytes | None:
        """All bytes that the guest has sent since the last call.

        None: the guest's position makes no sense.
        """
        available = self._memory.word(TO_HOST_HEAD) - self._tail
        if not 0 <= available <= self._size:
            return None
        if not available:
            return b""
        start = PAGE + self._size
        at = self._tail % self._size
        first = min(available, self._size - at)
        data = self._memory.read(start + at, first)
        if first < available:
            data += self._memory.read(start, available - first)
        self._tail += available
        self._memory.set_word(TO_HOST_TAIL, self._tail)
        return data
