"""The receiving half of a serial port: a backlog on the host, and the guest's 16-byte FIFO.

No byte is lost between the two. Bytes wait in the backlog until the guest can take
them. Linux resets the FIFO several times while it looks for the port and opens it; a
reset puts unread bytes back at the head of the backlog. Only bytes that the guest
sent to itself in loopback mode are dropped.

Pacing: a real line has a speed, but this one could deliver the next byte before the
guest's interrupt handler returns. Linux's handler runs as long as there are bytes. It
puts them into a buffer of 64 KiB that only a kernel thread empties. So an endless
burst starves that thread and overflows the buffer, and Linux drops RTS too late to
help. Therefore, after the guest has emptied the FIFO, :meth:`fill` holds back the next
load for as long as the guest took for the last one. That leaves half of the guest's
time for processing the bytes, on a fast guest and on a slow one.

Pure: the caller locks and provides the time.
"""

from collections import deque

from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

FIFO_SIZE = 16
MAX_PAUSE = 0.02
"""In seconds. After a stop of a minute, the guest must not wait a further minute."""

MAX_BACKLOG = 1 << 20
"""Bytes of a backlog that can be saved and restored: more than a sender leaves that heeds room."""

_LOOPED = 0x100
"""Marks a byte in the FIFO that came from the guest itself."""


class ReceiveFifo:
    """Backlog and FIFO. ``capacity`` is 1 while the guest has FIFOs disabled, else 16."""

    def __init__(self) -> None:
        self.capacity = 1
        self._backlog: deque[int] = deque()
        self._fifo: deque[int] = deque()
        # A load is the bytes that went into the FIFO since it was last empty.
        self._loaded = 0
        self._loaded_at = 0.0
        self._hold_until = 0.0

    def __len__(self) -> int:
        """The number of bytes in the FIFO, which the guest can read now."""
        return len(self._fifo)

    @property
    def waiting(self) -> int:
        """The number of bytes in the backlog."""
        return len(self._backlog)

    def put(self, data: bytes) -> None:
        """Append to the backlog."""
        self._backlog.extend(data)

    def fill(self, now: float, paced: bool) -> float | None:
        """Move bytes from the backlog to the FIFO as far as it has room.

        ``now`` is in seconds on any monotonic clock. With ``paced``, nothing
        moves during a pause, and at most one load between two pauses. Returns the
        end of the pause, or None if there is none to wait for.
        """
        if not self._backlog:
            return None
        if paced and now < self._hold_until:
            return self._hold_until
        if not self._fifo:
            self._loaded = 0
            self._loaded_at = now
        room = self.capacity - max(len(self._fifo), self._loaded if paced else 0)
        for _ in range(min(room, len(self._backlog))):
            self._fifo.append(self._backlog.popleft())
            self._loaded += 1
        return None

    def pop(self, now: float) -> int:
        """Take the oldest byte, for the receiver buffer register; 0 if there is none."""
        if not self._fifo:
            return 0
        byte = self._fifo.popleft()
        if not self._fifo:
            self._hold_until = now + min(now - self._loaded_at, MAX_PAUSE)
        return byte & 0xFF

    def loop(self, byte: int) -> bool:
        """Receive a byte that the guest sent in loopback mode; False on an overrun."""
        if len(self._fifo) >= self.capacity:
            return False
        self._fifo.append(byte | _LOOPED)
        return True

    def reset(self) -> None:
        """Empty the FIFO. Bytes of the host return to the backlog."""
        unread = [byte for byte in self._fifo if not byte & _LOOPED]
        self._backlog.extendleft(reversed(unread))
        self._fifo.clear()

    def save(self) -> "Fields":
        """The bytes on their way; SnapshotError if more than MAX_BACKLOG wait.

        Pauses are not saved: the guest was away for longer.
        """
        if self.waiting > MAX_BACKLOG:
            from pykvm.snapshot.fields import SnapshotError

            raise SnapshotError(
                f"{self.waiting} bytes of input wait for the guest, {MAX_BACKLOG} can be saved",
                "save the machine when its guest has read more of its input",
            )
        fifo = [byte.to_bytes(2, "little") for byte in self._fifo]
        return {"fifo": b"".join(fifo), "backlog": bytes(self._backlog)}

    def load(self, saved: "Saved") -> None:
        """Take over the bytes of :meth:`save`. SnapshotError."""
        pairs = saved.data("fifo", 0, 2 * FIFO_SIZE)
        if len(pairs) % 2 or len(pairs) // 2 > self.capacity:
            saved.refuse("fifo has a length that no FIFO has")
        fifo = [int.from_bytes(pairs[at : at + 2], "little") for at in range(0, len(pairs), 2)]
        if any(byte & ~(_LOOPED | 0xFF) for byte in fifo):
            saved.refuse("fifo holds what is no byte")
        self._fifo = deque(fifo)
        self._backlog = deque(saved.data("backlog", 0, MAX_BACKLOG))
        saved.end()
