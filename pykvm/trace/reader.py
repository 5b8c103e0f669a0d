"""Reads events from JSON Lines. Pure.

A trace may come from anywhere, so nothing in it is trusted. A line that does
not follow docs/reference/trace.md is a UsageError that names the line. The
last line may be unfinished, because a killed pykvm leaves it so.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pykvm.errors import UsageError
from pykvm.trace.events import BEGIN, DEVICE, END

VERSION = 1
"""The version of the format; it grows with each change that readers have to know."""
LINE_MAX = 1 << 20
"""The most bytes of a line; pykvm writes shorter lines."""
WHOLE_MAX = (1 << 63) - 1
TEXT_MAX = 200
"""The most characters of a text from the trace that are shown."""
_HINT = "give a file that 'pykvm boot --trace FILE' wrote"


@dataclass(frozen=True, slots=True)
class Event:
    """One line. Without a disk, ``disk`` is empty; without a queue, ``queue`` is DEVICE."""

    line: int
    ns: int
    name: str
    disk: str
    queue: int
    fields: dict[str, Any]

    def whole(self, name: str) -> int:
        """The field ``name``, a whole number from 0 to 2^63 - 1."""
        return _whole(self.fields.get(name), self.line, name)

    def text(self, name: str) -> str:
        """The field ``name``, which is text."""
        return _text(self.fields.get(name), self.line, name)

    def count(self, name: str) -> int:
        """The length of the field ``name``, which is a list."""
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise _mistake(self.line, f"'{name}' is missing or not a list")
        return len(value)


class Reader:
    """Iterates once over the events of a file, in the file's order.

    Afterwards, ``cut`` is True if the last line is unfinished, and
    ``complete`` is True if the trace has its end.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        """Each of ``lines`` ends with a newline. One longer than LINE_MAX may be given in part."""
        self.cut = False
        self.complete = False
        self._lines = lines

    def __iter__(self) -> Iterator[Event]:
        number = 0
        for number, line in enumerate(self._lines, 1):
            if number == 1 and line.startswith(b"["):
                raise UsageError("this is not a trace in JSON Lines", "trace with format=jsonl")
            if not line.endswith(b"\n") and number > 1 and len(line) <= LINE_MAX:
                self.cut = True
                return
            event = _event(line, number)
            if event.name == BEGIN and event.whole("version") > VERSION:
                raise UsageError(
                    "a newer pykvm wrote this trace", "read the trace with that version"
                )
            self.complete = event.name == END
            yield event
        if number == 0:
            raise UsageError("this is not a trace: it is empty", _HINT)


def _event(line: bytes, number: int) -> Event:
    if len(line) > LINE_MAX:
        raise _mistake(number, "it is longer than any event")
    try:
        members = json.loads(line)
    except (ValueError, RecursionError):
        raise _mistake(number, "it is not JSON") from None
    if not isinstance(members, dict):
        raise _mistake(number, "it is not an object")
    queue = members.pop("queue", None)
    return Event(
        number,
        _whole(members.pop("ns", None), number, "ns"),
        _text(members.pop("event", None), number, "event"),
        _text(members.pop("disk", ""), number, "disk"),
        DEVICE if queue is None else _whole(queue, number, "queue"),
        members,
    )


def _whole(value: object, line: int, name: str) -> int:
    # True is an int in Python.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= WHOLE_MAX:
        raise _mistake(line, f"'{name}' is missing or not a whole number from 0")
    return value


def _text(value: object, line: int, name: str) -> str:
    if not isinstance(value, str):
        raise _mistake(line, f"'{name}' is missing or not text")
    return value


def _mistake(line: int, reason: str) -> UsageError:
    kind = "this is not a trace: " if line == 1 else ""
    hint = _HINT if line == 1 else "the trace is damaged"
    return UsageError(f"{kind}line {line} is not an event: {reason}", hint)
