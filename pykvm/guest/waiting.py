"""Limits of time."""

import threading
import time

from pykvm.forms import refused


def seconds(name: str, value: object) -> float:
    """``value`` as seconds: a number that is not negative; ``math.inf`` means no limit."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise refused(name, value, "give a number of seconds, or math.inf for no limit")


class Deadline:
    """A moment, ``limit`` seconds from now."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._end = time.monotonic() + limit

    @property
    def left(self) -> float:
        """The seconds until then, at least 0, as a wait of :mod:`threading` takes them."""
        return min(max(0.0, self._end - time.monotonic()), threading.TIMEOUT_MAX)

    @property
    def text(self) -> str:
        """The limit, for a message."""
        return f"within {self.limit:g} s"


class Limit:
    """The limit of a guest's waits: ``seconds``, unless a call names its own."""

    def __init__(self, limit: float) -> None:
        self.seconds = limit

    def deadline(self, timeout: float | None) -> Deadline:
        """The deadline of a call with ``timeout``; UsageError."""
        return Deadline(self.seconds if timeout is None else seconds("timeout", timeout))
