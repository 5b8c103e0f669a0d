"""Events as text: JSON Lines, and the array of Chrome's trace event format. Pure."""

from json import JSONEncoder
from typing import Any, Final, Protocol

from pykvm.trace.events import BEGIN, COMPLETE, DEVICE, DISK, DONE, END, REQUEST, SUBMIT, Fields

_TRACKS: Final = 10_000
"""The track numbers of a queue: more than twice its greatest number of requests in flight."""
_OPERATIONS: Final = _TRACKS // 2
"""The first track of a queue that is for operations."""
_encode = JSONEncoder(separators=(",", ":")).encode


class Format(Protocol):
    """The text of a file of events: ``head``, the texts of :meth:`encode`, ``tail``.

    A file without the tail is still readable.
    """

    head: str
    tail: str

    def encode(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> str:
        """The text for one event, which may be empty. The arguments are those of Sink.record."""
        ...


class JsonLines:
    """A Format: one line with an object for each event."""

    head = ""
    tail = ""

    def encode(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> str:
        """See Format. An event without a disk or queue lacks the member ``disk`` or ``queue``."""
        made: dict[str, Any] = {"ns": ns, "event": event}
        if disk:
            made["disk"] = disk
        if queue != DEVICE:
            made["queue"] = queue
        made.update(fields)
        return _encode(made) + "\n"


class Chrome:
    """A Format: events with a duration are complete events, the rest are instants.

    Viewers show a disk as a process, and each of its queues as several tracks:
    one for instants, and further ones for requests and for operations. Spans
    on one track must not overlap, so overlapping ones get more tracks. A
    request or an operation is written when it is done; one that is in flight
    when pykvm dies is missing.
    """

    head = "["
    tail = "\n]\n"

    def __init__(self) -> None:
        self._comma = ""
        self._processes: dict[str, int] = {}
        # For each disk and first track: the end of the last span on each track.
        self._ends: dict[tuple[int, int], list[int]] = {}

    def encode(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> str:
        """See Format."""
        if event == DISK:
            return self._process(disk, f"{disk} {fields['path']}")
        if event in (REQUEST, SUBMIT):  # DONE and COMPLETE contain all of their facts
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
        self, category: str, process: int, first: int, ns: int, queue: int, fields: Fields
    ) -> str:
        """A complete event that ended at ``ns``, on the first free track from ``first`` on."""
        start = ns - fields["took_ns"]
        ends = self._ends.setdefault((process, first), [])
        place = next((i for i, end in enumerate(ends) if end <= start), len(ends))
        text = ""
        if place == len(ends):
            ends.append(ns)
            name = f"queue {queue} {category}s {place + 1}"
            text = self._named("thread_name", process, first + place, name)
        ends[place] = ns
        return text + self._element(
            name=fields["kind"],
            cat=category,
            ph="X",
            ts=start / 1000,
            dur=fields["took_ns"] / 1000,
            pid=process,
            tid=first + place,
            args=dict(fields),
        )

    def _process(self, disk: str, name: str) -> str:
        """The element that names the process of ``disk``; "" after the first time."""
        if disk in self._processes:
            return ""
        self._processes[disk] = len(self._processes) + 1
        return self._named("process_name", self._processes[disk], 0, name)

    def _named(self, kind: str, process: int, track: int, name: str) -> str:
        return self._element(name=kind, ph="M", pid=process, tid=track, args={"name": name})

    def _element(self, **members: Any) -> str:
        comma, self._comma = self._comma, ","
        return f"{comma}\n{_encode(members)}"
