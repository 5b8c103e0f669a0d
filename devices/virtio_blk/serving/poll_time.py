"""How long to watch memory for what is awaited before sleeping until its notification. Pure."""

from typing import Final

FIRST_NS: Final = 4000
"""Shorter than this, watching catches nothing: a driver takes that long to look and to ask."""


DOUBT: Final = 4
"""A sleep of up to so many times the limit may be mostly the host's way of waking a thread."""


class AdaptivePolling:
    """Watches for as long as would have spared the last sleep, or shortly if that is too long.

    A sleep and the wake-up cost the driver some 10 to 20 µs and the host a
    context switch, so watching for about as long is worth it while requests
    come in quick succession, and wasted before a long silence. ``now_ns`` is
    how long to watch now: 0, or from 4 µs to the limit.
    """

    now_ns: int
    _most_ns: int

    def __init__(self, most_ns: int) -> None:
        """``most_ns``: the limit; 0 for no watching."""
        self.now_ns = 0
        self._most_ns = most_ns

    def slept(self, nanoseconds: int) -> None:
        """There was a sleep of this length, after watching in vain."""
        enough = self.now_ns + nanoseconds
        if enough <= self._most_ns:
            self.now_ns = min(self._most_ns, max(FIRST_NS, enough))
        else:
            # A host that is slow to wake us must not look like a slow driver for ever.
            self.now_ns = min(self._most_ns, FIRST_NS) if enough <= DOUBT * self._most_ns else 0
