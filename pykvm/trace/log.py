"""A trace in memory, for the program that runs the machine."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from pykvm.forms import refused, text, whole
from pykvm.trace.events import DEVICE, Fields, matching


class TraceLog:
    """A trace in memory: give it to a machine as ``trace``, and iterate over its events.

    An event is a dictionary with the members of a line of a trace's file: ``event``, ``ns``,
    ``disk``, ``queue`` and more (docs/reference/trace.md). Iterating gives the events until now,
    in their order, and may be repeated. Any thread may do that while the guest runs.
    """

    problem = ""
    """See TraceFile: there is none."""

    def __init__(self, events: str = "*", most: int = 1_000_000) -> None:
        """``events`` selects names: patterns joined by ``:``, such as ``"*.submit:*.error"``.

        Of more than ``most`` events, the last ones are kept. UsageError.
        """
        if whole("most", most) < 1:
            raise refused("most", most, "give a number of events")
        self._wanted = matching(text("events", events))
        self._events: deque[dict[str, Any]] = deque(maxlen=most)
        self._recorded = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A copy, because threads of the disks add events meanwhile.
        return iter(self._events.copy())

    @property
    def dropped(self) -> int:
        """The number of the oldest events that were dropped, because there were too many."""
        return max(0, self._recorded - len(self._events))

    def clear(self) -> None:
        """Forget all events until now."""
        self._events.clear()
        self._recorded = 0

    # -- Sink, and what a machine asks of a trace ---------------------------------

    def begin(self) -> None:
        """See TraceFile."""

    def wants(self, event: str) -> bool:
        """See Sink."""
        return event in self._wanted

    def record(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> None:
        """See Sink."""
        if event not in self._wanted:
            return
        made: dict[str, Any] = {"ns": ns, "event": event, "disk": disk}
        if queue != DEVICE:
            made["queue"] = queue
        made.update(fields)
        self._events.append(made)
        self._recorded += 1
