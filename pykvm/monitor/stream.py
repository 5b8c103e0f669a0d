"""JSON messages out of a stream of bytes. Pure.

Clients put anything or nothing between two messages, and may spread a message
over several lines. So a message is an object or array, and ends with the
bracket that closes it. A malformed message gives one :class:`Malformed`, and
the next message begins

- after the closing bracket, if the malformed message has one;
- else on the next line. A JSON string cannot contain a newline, so the end of
  a line shows whether the line can still become part of a message.
"""

import json
import math
import re
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, NoReturn

MAX_MESSAGE: Final = 64 << 10
"""The greatest length of a message, in bytes; no command comes near."""

_SYNTAX: Final = JSONDecoder(parse_int=str, parse_float=str)
"""Judges neither numbers nor UTF-8: a message that is cut off here may have cut-off ones."""
_END: Final = re.compile(rb"[\]}\n]")
_MARK: Final = re.compile(r'"(?:[^"\\]|\\.)*"|["\[\]{}]', re.DOTALL)
_SPACE: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON object or array."""

    value: Any


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that are not JSON; ``reason`` is a sentence."""

    reason: str


class JsonStream:
    """Takes bytes as they come. The memory used is bounded."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip_to = b""  # skipping ends at any of these bytes

    def feed(self, data: bytes) -> list[Value | Malformed]:
        """The messages that ``data`` completes, in order."""
        self._buffer += data
        found: list[Value | Malformed] = []
        if not _END.search(data) and len(self._buffer) <= MAX_MESSAGE:
            return found
        while (item := self._next()) is not None:
            found.append(item)
        return found

    def _next(self) -> Value | Malformed | None:
        buffer = self._buffer
        if self._skip_to and not self._skip():
            return None
        del buffer[: len(buffer) - len(buffer.lstrip(_SPACE))]
        # As far as the last end, so that a message gets the same answer in any pieces.
        judged = max(map(buffer.rfind, b"]}\n")) + 1 if len(buffer) <= MAX_MESSAGE else len(buffer)
        if not judged:
            return None
        if buffer[0] not in b"{[":
            self._skip_to = b"{[\n"
            return Malformed("a message must be a JSON object")
        text = buffer[:judged].decode("latin-1")  # a character for each byte
        try:
            end = _SYNTAX.raw_decode(text)[1]
        except JSONDecodeError as error:
            # A mistake at the end of the text is that the rest is missing.
            end = _closing(text) if error.pos < len(text) else -1
            return self._malformed(text, error, end)
        except RecursionError as error:
            return self._malformed(text, error, _closing(text))
        message = bytes(buffer[:end])
        del buffer[:end]
        return _too_long() if end > MAX_MESSAGE else _decode(message)

    def _skip(self) -> bool:
        """Drop the bytes before the first of ``_skip_to``; False if none of these is there yet."""
        ends = [at for at in map(self._buffer.find, self._skip_to) if at >= 0]
        del self._buffer[: min(ends, default=len(self._buffer))]
        if ends:
            self._skip_to = b""
        return bool(ends)

    def _malformed(
        self, text: str, error: ValueError | RecursionError, end: int
    ) -> Malformed | None:
        """Drop a malformed message, which ``text`` closes at ``end`` or not at all (-1).

        None if it is not malformed but unfinished.
        """
        if max(end, 0) > MAX_MESSAGE or (end < 0 and len(text) > MAX_MESSAGE):
            drop, reason = end, _too_long()
        elif end < 0 and "\n" not in text:
            return None
        else:
            drop, reason = end, Malformed(_reason(error))
            if isinstance(error, JSONDecodeError):
                line = _next_line(text, error.pos)
                if end < 0 and not line:
                    return None  # the mistake is that the rest is missing
                if line and (end < 0 or line < end):
                    drop = line
        if drop < 0:
            self._skip_to = b"\n"
        else:
            del self._buffer[:drop]
        return reason


def _next_line(text: str, mistake: int) -> int:
    """The start of the line that may hold the next message; 0 if that is not known yet.

    An object at the start of a line, where none can be, is that message.
    """
    line = text.rfind("\n", 0, mistake) + 1
    starts_line = not text[line:mistake].strip(" \t\r\n")
    if line and starts_line and text.startswith("{", mistake):
        return line
    return text.find("\n", mistake) + 1


def _closing(text: str) -> int:
    """The index behind the bracket that closes the first one of ``text``; -1 if there is none."""
    depth = 0
    for mark in _MARK.finditer(text):
        if mark[0] == '"':
            return -1  # a string that does not end
        if mark[0] in "{[":
            depth += 1
        elif mark[0] in "}]":
            depth -= 1
            if not depth:
                return mark.end()
    return -1


def _decode(message: bytes) -> Value | Malformed:
    """A message of correct syntax, with its numbers and its UTF-8 checked."""
    try:
        text = message.decode("utf-8")
        # Python accepts, and would write back, numbers that JSON does not have.
        return Value(json.loads(text, parse_constant=_no_constant, parse_float=_finite))
    except (ValueError, RecursionError) as error:
        return Malformed(_reason(error))


def _too_long() -> Malformed:
    return Malformed(f"the message is longer than {MAX_MESSAGE} bytes")


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, JSONDecodeError):
        return f"JSON: {error.msg[:1].lower()}{error.msg[1:]}"
    if isinstance(error, UnicodeDecodeError):
        return "the message is not UTF-8"
    if isinstance(error, RecursionError):
        return "the message is nested too deeply"
    return f"JSON: {error}"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
