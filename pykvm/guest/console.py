"""The guest's console: its text, waiting for a text, and input."""

import codecs
import io
import re
import threading
import time
from collections.abc import Callable

from pykvm.forms import refused
from pykvm.guest.errors import GuestError, GuestTimeout, last_lines
from pykvm.guest.waiting import Limit

KEPT = 1 << 20
"""The number of the console's last characters that are kept."""
PUT_BACK = "the guest was put back"
"""The reason for which calls fail that wait while a guest is reset."""
_GATHER_SECONDS = 0.002
"""The time for which text gathers before it is searched: the guest prints one byte at a time."""
_MOST_PIECES = 1 << 16


class Console:
    """The guest's console, its first serial port. Any thread may use it."""

    def __init__(self, limit: Limit) -> None:
        """``limit`` is the guest's."""
        self._limit = limit
        self._feed: Callable[[bytes], object]
        self._late: Callable[[str], GuestTimeout]
        self._changed = threading.Condition()
        self._decoder = _decoder()
        self._kept = ""
        self._new: list[str] = []  # pieces after _kept; the guest prints one byte at a time
        self._found = 0  # the end of the last match in _kept
        self._runs = 0
        self._over: Callable[[str], GuestError] | None = None

    def __repr__(self) -> str:
        return f"<Console: {len(self.text)} characters>"

    @property
    def text(self) -> str:
        """The text that the guest has printed; of a long one at least the last 2**20 characters."""
        with self._changed:
            return self._gathered()

    def write(self, data: str | bytes) -> None:
        """Type ``data``. It waits until the guest reads it. GuestDied if the guest has ended."""
        if isinstance(data, str):
            data = data.encode()
        if not isinstance(data, bytes):
            raise refused("data", data, "give a string or bytes")
        if self._over is not None:
            raise self._over("a write to its console")
        self._feed(data)

    def wait_for(
        self, pattern: "str | re.Pattern[str]", timeout: float | None = None
    ) -> "re.Match[str]":
        """Wait until the guest has printed ``pattern``, a regular expression; return the match.

        The search begins behind the last match, so it finds each text once. GuestTimeout after
        ``timeout`` seconds; None is the guest's own limit. GuestDied if the guest ends before.
        """
        wanted = _compiled(pattern)
        deadline = self._limit.deadline(timeout)
        during = f"the wait for /{wanted.pattern}/ on its console"
        run = self._runs
        while True:
            with self._changed:
                if run != self._runs:
                    raise GuestError(f"{PUT_BACK}, during {during}")
                if (found := self._search(wanted)) is not None:
                    return found
                if self._over is not None:
                    raise self._over(during)
                if not self._changed.wait(deadline.left):
                    break
            time.sleep(_GATHER_SECONDS)
        raise self._late(f"the console has not shown /{wanted.pattern}/ {deadline.text}")

    def tail(self) -> str:
        """The last lines, printable."""
        with self._changed:
            return last_lines(self._gathered())

    # For the guest that owns it.

    def _begin(self, feed: Callable[[bytes], object], late: Callable[[str], GuestTimeout]) -> None:
        """A run of the guest begins, without any text.

        ``feed`` takes input for it. ``late`` makes the error of a wait that takes too long.
        """
        with self._changed:
            self._late = late
            self._runs += 1
            self._feed = feed
            self._over = None
            self._decoder = _decoder()
            self._kept = ""
            self._new.clear()
            self._found = 0
            self._changed.notify_all()

    def _take(self, data: bytes) -> None:
        """The guest has printed ``data``: called in a vCPU's thread."""
        with self._changed:
            self._new.append(self._decoder.decode(data))
            if len(self._new) > _MOST_PIECES:
                self._gathered()
            self._changed.notify_all()

    def _end(self, over: Callable[[str], GuestError]) -> None:
        """The guest has ended: all waits raise ``over`` of what they do."""
        with self._changed:
            self._over = over
            self._changed.notify_all()

    def _search(self, wanted: "re.Pattern[str]") -> "re.Match[str] | None":
        found = wanted.search(self._gathered(), self._found)
        if found is not None:
            self._found = found.end()
        return found

    def _gathered(self) -> str:
        """The text until now. The caller holds the lock."""
        self._kept += "".join(self._new)
        self._new.clear()
        if len(self._kept) > 2 * KEPT:
            dropped = len(self._kept) - KEPT
            self._kept = self._kept[dropped:]
            self._found = max(0, self._found - dropped)
        return self._kept


def _decoder() -> io.IncrementalNewlineDecoder:
    """Decodes as Python reads text files: UTF-8, and a newline for each end of a line."""
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    return io.IncrementalNewlineDecoder(utf8, translate=True)


def _compiled(pattern: "str | re.Pattern[str]") -> "re.Pattern[str]":
    try:
        wanted = re.compile(pattern)
        wanted.search("")
    except (re.error, TypeError):
        raise refused("pattern", pattern, "give a regular expression for text") from None
    return wanted
