"""JSON values out of a stream of bytes, whatever stands between them. Pure.

A client need not put anything between two messages, and may spread one over
lines. So a message ends with the bracket that closes its first one. What is
no JSON is one :class:`Malformed`, and the next message begins

- after that bracket, if the brackets are in pairs;
- else on the next line. A newline cannot occur in a JSON string, so a line
  that can no longer become a message is known by the time that it ends.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

MAX_MESSAGE: Final = 64 << 10
"""The bytes of a message at most; no command comes near."""

_MARKS = re.compile(rb'["\[\]{}]')
_STRING_END = re.compile(rb'(?:[^"\\]|\\.)*"', re.DOTALL)
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value, an object or an array."""

    value: Any


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that are no JSON; ``reason`` is a sentence."""

    reason: str


class JsonStream:
    """Takes bytes as they come. The memory used is bounded."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        # How far the brackets of the message at the buffer's start were counted.
        self._scanned = 0
        self._depth = 0
        self._skip_to = b""  # where skipping ends: at any of these bytes

    def feed(self, data: bytes) -> list[Value | Malformed]:
        """What ``data`` completes, in order."""
        self._buffer += data
        found = []
        while (item := self._next()) is not None:
            found.append(item)
        return found

    def _next(self) -> Value | Malformed | None:
        buffer = self._buffer
        if self._skip_to and not self._skip():
            return None
        del buffer[: len(buffer) - len(buffer.lstrip(_SPACE))]
        if not buffer:
            return None
        if buffer[0] not in b"{[":
            self._skip_to = b"{[\n"
            return Malformed("a message is an object")
        end = self._scan()
        if end < 0:
            return self._unfinished()
        return self._decode(end)

    def _skip(self) -> bool:
        """Drop what stands before the first of the awaited bytes; False if none is there yet."""
        ends = [at for at in map(self._buffer.find, self._skip_to) if at >= 0]
        self._drop(min(ends, default=len(self._buffer)))
        if ends:
            self._skip_to = b""
        return bool(ends)

    def _scan(self) -> int:
        """Where the message ends, or -1 if it does not yet."""
        buffer, at = self._buffer, self._scanned
        while mark := _MARKS.search(buffer, at):
            at = mark.start()
            if mark[0] == b'"':
                string = _STRING_END.match(buffer, mark.end())
                if not string:
                    break
                at = string.end()
                continue
            at += 1
            self._depth += 1 if mark[0] in b"{[" else -1
            if not self._depth:
                return at
        else:
            at = len(buffer)
        self._scanned = at
        return -1

    def _decode(self, end: int) -> Value | Malformed:
        message = bytes(self._buffer[:end])
        if len(message) > MAX_MESSAGE:
            self._drop(end)
            return _too_long()
        try:
            _check_syntax(message)
        except json.JSONDecodeError as error:
            line = self._next_line(error.pos)
            self._drop(line if 0 < line < end else end)
            return _malformed(error)
        except RecursionError as error:
            self._drop(end)
            return Malformed(_reason(error))
        self._drop(end)
        try:
            return Value(_loads(message.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            return Malformed(_reason(error))

    def _unfinished(self) -> Malformed | None:
        """Whether what is there cannot become a message whatever follows."""
        if len(self._buffer) > MAX_MESSAGE:
            self._skip_to = b"\n"
            return _too_long()
        if b"\n" not in self._buffer:
            return None
        try:
            _check_syntax(self._buffer)
        except json.JSONDecodeError as error:
            line = self._next_line(error.pos)
            if not line:
                return None  # the mistake is that something more is to follow
            self._drop(line)
            return _malformed(error)
        except RecursionError as error:
            self._skip_to = b"\n"
            return Malformed(_reason(error))
        return None

    def _next_line(self, mistake: int) -> int:
        """Where the line begins that may hold the next message, 0 if that is not known yet.

        An object at the start of a line, where none can be, is that message.
        """
        line = self._buffer.rfind(b"\n", 0, mistake) + 1
        starts_line = not self._buffer[line:mistake].strip(_SPACE)
        if line and starts_line and self._buffer.startswith(b"{", mistake):
            return line
        return self._buffer.find(b"\n", mistake) + 1

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = 0
        self._depth = 0


def _too_long() -> Malformed:
    return Malformed(f"the message is longer than {MAX_MESSAGE} bytes")


def _malformed(error: json.JSONDecodeError) -> Malformed:
    return Malformed(f"JSON: {error.msg[:1].lower()}{error.msg[1:]}")


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the message is not UTF-8"
    if isinstance(error, RecursionError):
        return "the message is nested too deeply"
    return f"JSON: {error}"


def _check_syntax(text: bytes | bytearray) -> None:
    """JSONDecodeError, with the position of a byte, or RecursionError.

    Neither numbers nor UTF-8 are judged: where ``text`` ends early, more of them may follow.
    """
    json.loads(text.decode("latin-1"), parse_int=str, parse_float=str)


def _loads(text: str) -> Any:
    """Of JSON alone: Python's own takes, and would write back, numbers that are none."""
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
