"""The agent's protocol, version 3: frames between the host and a program in the guest.

A frame is a header of 4 bytes (kind, id, length as little-endian u16) and
``length`` bytes of payload, at most 32 KiB::

    guest to host                             host to guest
    0x01 HELLO   u16 version, u64 number,     0x81 RUN        last or only piece of a command
                 text: what went wrong        0x82 RUN_PART   an earlier piece
    0x02 STDOUT  bytes                        0x83 STDIN      bytes
    0x03 STDERR  bytes                        0x84 STDIN_EOF  nothing
    0x04 EXIT    u8 status, u8 signal,        0x85 SIGNAL     u8 number
                 u8 timed out                 0x86 POWEROFF   u8 status
    0x05 ERROR   text                         0x87 RESIZE     u16 rows, u16 columns
    0x06 CREDIT  u32 bytes of input           0x88 WAKE       u64 number, u8 flags, u64 ns since
    0x07 DATA    bytes                                        1970, 32 bytes of entropy
    0x08 DONE    u32 file mode                0x89 OUTPUT_CREDIT  u32, u32 bytes of each output
                                              0x8a PUSH       u32 file mode, path
                                              0x8b PULL       path
                                              0x8c DMESG      nothing
                                              0x8d RESCAN     nothing
                                              0x8e SETTLE     nothing

The host gives each request (RUN, PUSH, PULL, DMESG, RESCAN, SETTLE) an id from 1 to 255,
which belongs to it until EXIT, DONE or ERROR. Frames of id 0 belong to the
conversation. guest/init/agent.c describes the order of frames.

Pure: no I/O.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum

from pykvm.errors import UsageError
from pykvm.lean.records import record

PROTOCOL_VERSION = 3
MAX_PAYLOAD = 32 * 1024
ENTROPY_BYTES = 32
MAX_COMMAND = 128 * 1024 - 1
"""The most bytes that Linux takes as one argument (MAX_ARG_STRLEN, less the NUL)."""
MAX_REQUEST = 256 * 1024
"""The most bytes of a command with all its arguments and variables."""
MAX_ARGUMENTS, MAX_VARIABLES = 4096, 1024
MAX_PATH = 4063
IDS = range(1, 256)
INPUT_WINDOW = 64 * 1024
"""Bytes of input that may be on their way to each request, until CREDIT comes."""
OUTPUT_WINDOW = 256 * 1024
"""Bytes of each output that the guest may send until OUTPUT_CREDIT comes."""

_HEADER = struct.Struct("<BBH")
_HELLO = struct.Struct("<HQ")
_WAKE = struct.Struct(f"<QBQ{ENTROPY_BYTES}s")
_RUN = struct.Struct("<BIHH")
_SHELL_LINE, _NO_INPUT = 1, 2
_SET_CLOCK, _ADD_ENTROPY, _NEW_DISKS = 1, 2, 4
_MOST_MS = (1 << 32) - 1


class Kind(IntEnum):
    """The kinds of frames."""

    HELLO = 0x01
    STDOUT = 0x02
    STDERR = 0x03
    EXIT = 0x04
    ERROR = 0x05
    CREDIT = 0x06
    DATA = 0x07
    DONE = 0x08
    RUN = 0x81
    RUN_PART = 0x82
    STDIN = 0x83
    STDIN_EOF = 0x84
    SIGNAL = 0x85
    POWEROFF = 0x86
    RESIZE = 0x87
    WAKE = 0x88
    OUTPUT_CREDIT = 0x89
    PUSH = 0x8A
    PULL = 0x8B
    DMESG = 0x8C
    RESCAN = 0x8D
    SETTLE = 0x8E


@record
class Frame:
    """One frame."""

    kind: int
    id: int
    payload: bytes


@record
class ProtocolError:
    """The guest broke the protocol; ``reason`` says how. Its later bytes mean nothing."""

    reason: str


@record
class Hello:
    """The agent answers: after its start with number 0, else to the WAKE with this ``number``.

    ``problem``: what went wrong in waking up, as the guest's text.
    """

    version: int
    number: int
    problem: bytes


@record
class RunRequest:
    """A command to run in the guest."""

    command: bytes | Sequence[bytes]
    """A line for ``/bin/sh -c``, or the program and its arguments. A program without a slash in
    its name is looked for in PATH; if it is not there, it is an applet of busybox."""
    env: Sequence[tuple[bytes, bytes]] = ()
    """More variables of the environment."""
    cwd: bytes = b""
    """The working directory; empty: /root."""
    timeout: float = 0.0
    """In seconds of the guest; 0: none. Then the process group gets SIGTERM, and SIGKILL after 2 s
    more."""
    stdin: bool = True
    """False: the command finds its input at the end."""
    manual_credit: bool = False
    """The reader of the output says when there is room for more: see CommandHandle.consumed."""

    def encode(self) -> bytes:
        """The payload of RUN. UsageError if no guest could run this command."""
        line = isinstance(self.command, bytes)
        words = (self.command,) if isinstance(self.command, bytes) else tuple(self.command)
        variables = [name + b"=" + value for name, value in self.env]
        strings = [self.cwd, *variables, *words]
        if not words or not (line or words[0]):
            raise UsageError("the command is empty", "name a program")
        if any(b"=" in name or not name for name, _ in self.env):
            raise UsageError("a variable's name is empty or has '=' in it", "check env")
        total = _RUN.size + sum(len(string) + 1 for string in strings)
        if (
            max(map(len, strings)) > MAX_COMMAND
            or total > MAX_REQUEST
            or len(words) > MAX_ARGUMENTS
            or len(variables) > MAX_VARIABLES
            or any(0 in string for string in strings)
        ):
            raise UsageError(
                "the command is longer than 128 KiB or contains a NUL byte",
                "feed a script to 'sh' on standard input instead",
            )
        flags = (_SHELL_LINE if line else 0) | (0 if self.stdin else _NO_INPUT)
        # A limit that is not 0 must not become none.
        limit = min(max(int(self.timeout * 1000), 1), _MOST_MS) if self.timeout > 0 else 0
        head = _RUN.pack(flags, limit, len(words), len(variables))
        return head + b"\0".join(strings) + b"\0"


def encode(kind: int, payload: bytes = b"", id: int = 0) -> bytes:
    """One frame as bytes; the payload is at most MAX_PAYLOAD long."""
    assert len(payload) <= MAX_PAYLOAD
    return _HEADER.pack(kind, id, len(payload)) + payload


def encode_all(kind: int, data: bytes, id: int, last: int | None = None) -> list[bytes]:
    """``data`` as frames of ``kind``; the last frame is of kind ``last``, if given.

    Empty data gives one empty frame.
    """
    starts = range(0, max(len(data), 1), MAX_PAYLOAD)
    final = starts[-1]
    return [
        encode(
            last if last is not None and start == final else kind,
            data[start : start + MAX_PAYLOAD],
            id,
        )
        for start in starts
    ]


def encode_wake(number: int, now_ns: int | None, entropy: bytes | None, new_disks: bool) -> bytes:
    """The frame WAKE; None leaves the clock or the random numbers as they are."""
    assert entropy is None or len(entropy) == ENTROPY_BYTES
    flags = _NEW_DISKS if new_disks else 0
    flags |= 0 if now_ns is None else _SET_CLOCK
    flags |= 0 if entropy is None else _ADD_ENTROPY
    payload = _WAKE.pack(number, flags, now_ns or 0, entropy or bytes(ENTROPY_BYTES))
    return encode(Kind.WAKE, payload)


def decode_hello(payload: bytes) -> Hello | None:
    """The HELLO in ``payload``; of an agent with a different protocol, the version alone."""
    if len(payload) < 2:
        return None
    version = int.from_bytes(payload[:2], "little")
    if version != PROTOCOL_VERSION or len(payload) < _HELLO.size:
        return None if version == PROTOCOL_VERSION else Hello(version, 0, b"")
    _, number = _HELLO.unpack_from(payload)
    return Hello(version, number, payload[_HELLO.size :])


class FrameDecoder:
    """Turns bytes, in pieces of any size, into frames. Keeps at most one frame and one piece.

    With ``number``, all bytes before the HELLO with that number are dropped: they are the rest of
    a conversation with someone else.
    """

    def __init__(self, number: int | None = None) -> None:
        self._buffer = bytearray()
        self._failed = False
        self._awaited = None if number is None else _HELLO.pack(PROTOCOL_VERSION, number)

    def feed(self, data: bytes) -> list[Frame | ProtocolError]:
        """The frames that ``data`` completes.

        A bad header gives one ProtocolError, and all later bytes are ignored.
        """
        if self._failed:
            return []
        self._buffer += data
        if self._awaited is not None and not self._find_hello(self._awaited):
            return []
        frames: list[Frame | ProtocolError] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            kind, id, length = _HEADER.unpack_from(self._buffer, start)
            if length > MAX_PAYLOAD:
                self._failed = True
                frames.append(ProtocolError(f"bad frame header {kind:02x} {id:02x} {length}"))
                self._buffer.clear()
                return frames
            end = start + _HEADER.size + length
            if end > len(self._buffer):
                break
            frames.append(Frame(kind, id, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return frames

    def _find_hello(self, awaited: bytes) -> bool:
        """Drop all before the awaited HELLO; False if it has not come yet."""
        at = self._buffer.find(awaited)
        start = at - _HEADER.size
        if start >= 0 and self._buffer[start] == Kind.HELLO:
            del self._buffer[:start]
            self._awaited = None
            return True
        # Keep what may be its beginning.
        del self._buffer[: -(_HEADER.size + len(awaited))]
        return False
