"""How frames get to the guest's agent: through the rings of a mailbox, or over the serial line."""

from collections import deque
from collections.abc import Callable

from pykvm.agent.mailbox import Rings
from pykvm.agent.protocol import INPUT_WINDOW

LINE_WINDOW = 4096
"""Bytes of input on their way to each request over the serial line, which is slow: more would hold
up the frames behind them."""


class Outbox:
    """Sends frames in order. The caller locks.

    ``by_rings``: frames go through ``rings``, and a byte on the line wakes a guest that sleeps.
    """

    def __init__(self, line: Callable[[bytes], object], rings: Rings | None) -> None:
        self.by_rings = False
        self._line = line
        self._rings = rings
        self._queue: deque[bytes] = deque()

    @property
    def input_window(self) -> int:
        """Bytes of input that a request may have on their way."""
        return INPUT_WINDOW if self.by_rings else LINE_WINDOW

    def send(self, frames: list[bytes]) -> None:
        """Send ``frames``; those that find no room in the rings wait for :meth:`flush`."""
        if not self.by_rings:
            for frame in frames:
                self._line(frame)
        elif frames:
            self._queue += frames
            self.flush()
            if self._rings is not None and not self._rings.awake:
                self._line(b"\n")

    def flush(self) -> bool:
        """Move waiting frames to the ring, as far as there is room.

        False: the guest's position there makes no sense.
        """
        while self._queue and self._rings is not None:
            room = self._rings.put(self._queue[0])
            if not room:
                return room is not None
            self._queue.popleft()
        return True

    def clear(self) -> None:
        """Drop the waiting frames."""
        self._queue.clear()
