"""The end of a run: any thread may cause it, and the main thread waits for it."""

from contextlib import suppress
from queue import Empty, SimpleQueue

from pykvm.machine.outcome import Outcome


class EndOfRun:
    """The first outcome that is set. Its truth value tells whether the run has ended.

    Any thread and any signal handler may call :meth:`set`, even a handler that
    interrupts :meth:`wait`. SimpleQueue allows that. A threading.Event does
    not: the interrupted code might hold its lock.
    """

    def __init__(self) -> None:
        self._outcomes: list[tuple[Outcome]] = []
        self._came: SimpleQueue[None] = SimpleQueue()

    def __bool__(self) -> bool:
        return bool(self._outcomes)

    def set(self, outcome: Outcome) -> bool:
        """End the run with ``outcome``; False if it had ended before."""
        mine = (outcome,)  # unique, while two calls may set the same outcome
        self._outcomes.append(mine)
        self._came.put(None)
        return self._outcomes[0] is mine

    @property
    def outcome(self) -> Outcome:
        """The first outcome that was set."""
        return self._outcomes[0][0]

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most ``seconds``; True if it has come. For one thread."""
        if not self._outcomes:
            with suppress(Empty):
                self._came.get(timeout=seconds)
        return bool(self._outcomes)
