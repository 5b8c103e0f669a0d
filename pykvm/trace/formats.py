"""Events as text: JSON Lines, and the array of Chrome's trace event format. Pure."""

from json import JSONEncoder
from typing import Any, Final, Protocol

from pykvm.trace.events import BEGIN, COMPLETE, DEVICE, DISK, DONE, END, REQUEST, SUBMIT, Fields

_TRACKS: Final = 10_000
"""Numbers of tracks from one queue to the next: more than requests can be in flight twice."""
_OPERATIONS: Final = _TRACKS // 2
"""The first track for operations among a queue's."""
_encode = JSONEncoder(separators=(",", ":")).encode


class Format(Protocol):
    """Makes a file of events: ``head``, what :meth:`encode` gives for each, ``tail``.

    The file is of use without the tail, too.
    """

    head: str
    tail: str

    def encode(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> str:
        """The text for one event, which may be empty; the arguments as for Sink.record."""
        ...


class JsonLines:
    """A Format: an object on a line of its own for each event."""

    head = ""
    tail = ""

    def encode(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> str:
        """See Format. What does not belong to a queue, or to a disk, lacks these members."""
        made: dict[str, Any] = {"ns": ns, "event": event}
        if disk:
            made["disk"] = disk
        if queue != DEVICE:
            made["queue"] = queue
        made.update(fields)
        return _encode(made) + "\n"


class Chrome:
    """A Format: what has a duration as complete events, the rest as instants.

    A disk is a process to the viewers, and each of its queues several tracks:
    one for instants, and as many for requests and for operations as these
    overlap, since what shares a track must not. A request or an operation is
    there once it is done; one that is in flight when pykvm dies is missing.
    """

    head = "["
    tail = "\n]\n"

    def __init__(self) -> None:
        self._comma = ""
        self._processes: dict[str, int] = {}
        # For each disk, queue and first track, when the last span on each track ends.
        self._ends: dict[tuple[int, int], list[int]] = {}

    def encode(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> str:
        """See Format."""
        if event == DISK:
            return self._process(disk, f"{disk} {fields['path']}")
        if event in (REQUEST, SUBMIT):  # DONE and COMPLETE tell all that they do
            return ""
        text = "" if event in (BEGIN, END) else self._process(disk, disk)
        process = self._processes.get(disk, 0)
        first = (queue + 1) * _TRACKS
        if event == DONE:
            return text + self._span("request", process, first + 1, ns, queue, fields)
        if event == COMPLETE:
            track = first + _OPERATIONS
            return text + self._span("operation", process, track, ns, queue, fields)
        if disk and (process, first) not in self._ends:
            self._ends[process, first] = []
            name = "device" if queue == DEVICE else f"queue {queue}"
            text += self._named("thread_name", process, first, name)
        return text + self._element(
            name=event, ph="i", s="t", ts=ns / 1000, pid=process, tid=first, args=dict(fields)
        )

    def _span(
        self, what: str, process: int, first: int, ns: int, queue: int, fields: Fields
    ) -> str:
        """A complete event that ended at ``ns``, on a track from ``first`` on that is free."""
        start = ns - fields["took_ns"]
        ends = self._ends.setdefault((process, first), [])
        place = next((i for i, end in enumerate(ends) if end <= start), len(ends))
        text = ""
        if place == len(ends):
            ends.append(ns)
            name = f"queue {queue} {what}s {place + 1}"
            text = self._named("thread_name", process, first + place, name)
        ends[place] = ns
        return text + self._element(
            name=fields["kind"],
            cat=what,
            ph="X",
            ts=start / 1000,
            dur=fields["took_ns"] / 1000,
            pid=process,
            tid=first + place,
            args=dict(fields),
        )

    def _process(self, disk: str, name: str) -> str:
        """The name of ``disk``, if it was not given yet."""
        if disk in self._processes:
            return ""
        self._processes[disk] = len(self._processes) + 1
        return self._named("process_name", self._processes[disk], 0, name)

    def _named(self, what: str, process: int, track: int, name: str) -> str:
        return self._element(name=what, ph="M", pid=process, tid=track, args={"name": name})

    def _element(self, **members: Any) -> str:
        comma, self._comma = self._comma, ","
        return f"{comma}\n{_encode(members)}"
