"""The end of a run, which anybody may bring about and the main thread waits for."""

import os
import select
from typing import Self

from pykvm.platform.outcome import Outcome


class EndOfRun:
    """Set once, by whoever comes first; true from then on.

    :meth:`set` may be called from any thread and from a signal handler, also
    one that interrupts :meth:`wait`: it takes no lock, as threading.Event
    would, and wakes the waiter through an eventfd.
    """

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._eventfd)

    def __bool__(self) -> bool:
        return bool(self._outcomes)

    def set(self, outcome: Outcome) -> None:
        """End the run with ``outcome``, unless another has ended it."""
        self._outcomes.append(outcome)
        os.eventfd_write(self._eventfd, 1)

    @property
    def outcome(self) -> Outcome:
        """The first outcome that was set."""
        return self._outcomes[0]

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most ``seconds``; whether it has come."""
        if not self._outcomes:
            select.select([self._eventfd], [], [], seconds)
        return bool(self._outcomes)
