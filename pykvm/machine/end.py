"""The end of a run, which anybody may bring about and the main thread waits for."""

from contextlib import suppress
from queue import Empty, SimpleQueue

from pykvm.machine.outcome import Outcome


class EndOfRun:
    """Set once, by whoever comes first; true from then on.

    :meth:`set` may be called from any thread and from a signal handler, also
    one that interrupts :meth:`wait`: SimpleQueue is made for that, while the
    lock of a threading.Event might be held by the very code that the handler
    interrupted.
    """

    def __init__(self) -> None:
        self._outcomes: list[tuple[Outcome]] = []
        self._came: SimpleQueue[None] = SimpleQueue()

    def __bool__(self) -> bool:
        return bool(self._outcomes)

    def set(self, outcome: Outcome) -> bool:
        """End the run with ``outcome``, unless another has ended it; whether this one did."""
        mine = (outcome,)  # an object that nobody else has, unlike the outcome
        self._outcomes.append(mine)
        self._came.put(None)
        return self._outcomes[0] is mine

    @property
    def outcome(self) -> Outcome:
        """The first outcome that was set."""
        return self._outcomes[0][0]

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most ``seconds``; whether it has come. For one thread."""
        if not self._outcomes:
            with suppress(Empty):
                self._came.get(timeout=seconds)
        return bool(self._outcomes)
