"""Decides whether the host has enough CPUs for a thread that polls. Pure.

On a host with too few CPUs, a polling thread takes the CPU from the vCPU or the
disk that it waits for, or from a different program. It also uses up its share of
the CPU, and then waits longer for its turn when it has work. The sign of this: the
host takes the CPU away from the polling thread for milliseconds. Then the thread
sleeps instead of polling for some time, and tries again.
"""

from typing import Final

WINDOW_NS: Final = 10_000_000
"""Lost time is added up over at least this time, until the next look()."""
LOST_NS: Final = 1_000_000
"""Contention is at least this much lost time in a window, if it is a twentieth of the window too.
The kernel's own threads take only some µs at a time."""
FIRST_REST_NS: Final = 20_000_000
"""The first pause of polling after contention. Each failed attempt to poll doubles the pause."""
LAST_REST_NS: Final = 640_000_000
"""The longest pause of polling."""
ATTEMPT_NS: Final = 500_000_000
"""An attempt to poll succeeds if it meets no contention for this long. A thread that also sleeps
keeps its CPU for some tenths of a second."""


class Contention:
    """Decides whether to poll. ``found``: CPUs are scarce, so the thread must not poll."""

    found: bool
    _began: int
    _lost: int
    _resumed: int
    _until: int
    _rest: int

    def __init__(self) -> None:
        self.found = False
        self._began = 0  # of the window
        self._lost = 0  # before the window
        self._resumed = 0  # when the last attempt began
        self._until = 0  # while found: the time of the next attempt
        self._rest = FIRST_REST_NS

    def look(self, now_ns: int, lost_ns: int) -> bool:
        """``found`` as of ``now_ns``. The thread calls it often.

        ``lost_ns``: the total time for which the thread has lost its CPU while polling.
        """
        if self.found:
            if now_ns >= self._until:
                self.found = False
                self._resumed = self._began = now_ns
                self._lost = lost_ns
            return self.found
        elapsed, lost = now_ns - self._began, lost_ns - self._lost
        if lost >= LOST_NS and 20 * lost >= elapsed:
            failed = now_ns - self._resumed < ATTEMPT_NS
            self._rest = min(2 * self._rest, LAST_REST_NS) if failed else FIRST_REST_NS
            self._until = now_ns + self._rest
            self.found = True
        elif elapsed >= WINDOW_NS:
            self._began, self._lost = now_ns, lost_ns
        return self.found
