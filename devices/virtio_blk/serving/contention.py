"""Whether there are CPUs enough for a thread that polls. Pure.

Where there are not, a thread that polls takes the CPU of what it waits for, a
vCPU or the host's own disk, or of another program. Its own share of a CPU runs
out sooner then, so it also waits longer for its turn when it has something to
do. It notices: while it polls, the host takes the CPU from it for milliseconds.
It sleeps instead for some time, and then tries again.
"""

from typing import Final

WINDOW_NS: Final = 10_000_000
"""Lost time is added up over at least this time, and until the next look after it."""
LOST_NS: Final = 1_000_000
"""This much lost time in a window, and a twentieth of it, is contention. The kernel's own threads
take some µs at a time."""
FIRST_REST_NS: Final = 20_000_000
"""How long a thread does not poll when contention is found. Each attempt that fails doubles it."""
LAST_REST_NS: Final = 640_000_000
"""The longest such time."""
ATTEMPT_NS: Final = 500_000_000
"""An attempt to poll that goes well for this long has not failed. A thread that also sleeps keeps
its CPU for some tenths of a second."""


class Contention:
    """Decides whether to poll. ``found``: CPUs are scarce, so do not."""

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
        self._until = 0  # while found: no attempt before
        self._rest = FIRST_REST_NS

    def look(self, now_ns: int, lost_ns: int) -> bool:
        """``found`` as of ``now_ns``. Call it often.

        ``lost_ns``: how long the thread has lost its CPU while polling, in all.
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
