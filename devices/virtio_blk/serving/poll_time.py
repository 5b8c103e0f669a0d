"""The time for which a thread polls before it sleeps. Pure."""

from typing import Final

FIRST_NS: Final = 4000
"""Polling for less is pointless: a driver needs this long to see a result and submit again."""

DOUBT: Final = 4
"""A sleep of up to this many times the limit may be mostly the host's time to wake a thread."""


class AdaptivePolling:
    """Polls for the time that would have avoided the last sleep, or shortly if that is too long.

    A sleep and its wake-up cost the driver 10 to 20 µs, and the host a context
    switch. Polling for about that long pays while requests follow each other
    quickly, and is wasted before a long silence. ``now_ns`` is the present
    polling time: 0, or from 4 µs to the limit.
    """

    now_ns: int
    _most_ns: int

    def __init__(self, most_ns: int) -> None:
        """``most_ns``: the limit; 0: never poll."""
        self.now_ns = 0
        self._most_ns = most_ns

    def slept(self, nanoseconds: int) -> None:
        """Adapt to a sleep of this length, after polling in vain."""
        enough = self.now_ns + nanoseconds
        if enough <= self._most_ns:
            self.now_ns = min(self._most_ns, max(FIRST_NS, enough))
        else:
            # A host that wakes threads slowly must not look like a slow driver for ever.
            self.now_ns = min(self._most_ns, FIRST_NS) if enough <= DOUBT * self._most_ns else 0
