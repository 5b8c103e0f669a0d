"""The agent's protocol: frames between the host and a program in the guest, over a serial port.

A frame is a header of 4 bytes (kind, 0, length as little-endian u16) and
``length`` bytes of payload, at most 4096::

    guest to host                        host to guest
    0x01 HELLO      u16 version (2)      0x81 EXEC       last or only piece of a command
    0x02 STDOUT     bytes                0x82 EXEC_PART  an earlier piece
    0x03 STDERR     bytes                0x83 STDIN      bytes
    0x04 EXIT       i32 status           0x84 STDIN_EOF  nothing
    0x05 ERROR      UTF-8 text           0x85 SIGNAL     u8 number
                                         0x86 POWEROFF   u8 status
                                         0x87 RESIZE     u16 rows, u16 columns
                                         0x88 WAKE       u64 ns since 1970, 32 bytes of
                                                         entropy, u8 look for new disks

The states of the conversation in :class:`AgentClient`::

    WAITING --HELLO--> READY --EXEC--> RUNNING --EXIT--> ENDED
       WAITING --WAKE, of a restored guest--> READY, and the agent answers with HELLO
       any state --ERROR, or a frame that breaks the rules--> ENDED

RESIZE tells the size of the terminal behind the guest's console, at any time
after HELLO. A run on a terminal uses only this frame of the agent's.

The guest is hostile: any bytes from it lead to a callback, never to an
exception.
"""

import struct
import threading
from collections.abc import Callable
from enum import Enum, IntEnum, auto
from typing import Protocol

from pykvm.errors import UsageError, guest_text
from pykvm.lean.records import record

PROTOCOL_VERSION = 2
MAX_PAYLOAD = 4096
ENTROPY_BYTES = 32
MAX_COMMAND = 128 * 1024 - 1
"""The most bytes that Linux takes as one argument (MAX_ARG_STRLEN, less the NUL)."""

_HEADER = struct.Struct("<BBH")
_WAKE = struct.Struct(f"<Q{ENTROPY_BYTES}s?")


class Kind(IntEnum):
    """The kinds of frames."""

    HELLO = 0x01
    STDOUT = 0x02
    STDERR = 0x03
    EXIT = 0x04
    ERROR = 0x05
    EXEC = 0x81
    EXEC_PART = 0x82
    STDIN = 0x83
    STDIN_EOF = 0x84
    SIGNAL = 0x85
    POWEROFF = 0x86
    RESIZE = 0x87
    WAKE = 0x88


@record
class Frame:
    """One frame."""

    kind: int
    payload: bytes


@record
class ProtocolError:
    """The guest broke the protocol; ``reason`` says how. Its later bytes mean nothing."""

    reason: str


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One frame as bytes; the payload is at most MAX_PAYLOAD long."""
    assert len(payload) <= MAX_PAYLOAD
    return _HEADER.pack(kind, 0, len(payload)) + payload


def encode_all(kind: int, data: bytes, last: int | None = None) -> bytes:
    """``data`` as frames of ``kind``; the last frame is of kind ``last``, if given.

    Empty data gives one empty frame.
    """
    starts = range(0, max(len(data), 1), MAX_PAYLOAD)
    final = starts[-1]
    return b"".join(
        encode(
            last if last is not None and start == final else kind,
            data[start : start + MAX_PAYLOAD],
        )
        for start in starts
    )


class FrameDecoder:
    """Turns bytes, in pieces of any size, into frames. Keeps at most one frame and one piece."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._failed = False

    def feed(self, data: bytes) -> list[Frame | ProtocolError]:
        """The frames that ``data`` completes.

        A bad header gives one ProtocolError, and all later bytes are ignored.
        """
        if self._failed:
            return []
        self._buffer += data
        frames: list[Frame | ProtocolError] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            kind, zero, length = _HEADER.unpack_from(self._buffer, start)
            if zero or length > MAX_PAYLOAD:
                self._failed = True
                frames.append(ProtocolError(f"bad frame header {kind:02x} {zero:02x} {length}"))
                self._buffer.clear()
                return frames
            end = start + _HEADER.size + length
            if end > len(self._buffer):
                break
            frames.append(Frame(kind, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return frames


class AgentState(Enum):
    """The states of the conversation; see the module."""

    WAITING = auto()
    READY = auto()
    RUNNING = auto()
    ENDED = auto()


class AgentEvents(Protocol):
    """The reports of the guest's agent, in the thread that calls ``received``."""

    def ready(self) -> None:
        """The agent runs."""
        ...

    def stdout(self, data: bytes) -> None:
        """The command's standard output. May block; the guest then waits."""
        ...

    def stderr(self, data: bytes) -> None:
        """The command's standard error. May block; the guest then waits."""
        ...

    def exited(self, status: int) -> None:
        """The command ended with an exit code, or by signal N: then ``status`` is 128 + N."""
        ...

    def failed(self, reason: str) -> None:
        """The conversation is over: the command did not start, or the guest broke the protocol."""
        ...


class AgentClient:
    """The host's side: runs one command in the guest.

    To connect it to a UART, pass ``uart.feed`` as ``send``, and set
    ``uart.sink = client.received`` and ``uart.on_room = client.room``. Any
    thread may call any method, also within an event. Events come one at a
    time. The conversation ends with one call of ``exited`` or ``failed``; later
    frames of the guest are ignored.
    """

    on_room: Callable[[], None] | None = None
    """Called when input may continue after :meth:`stdin` returned False."""

    def __init__(self, send: Callable[[bytes], bool], events: AgentEvents) -> None:
        self._send = send
        self._events = events
        self._lock = threading.Lock()
        # Held while events are reported, so that they stay in order. Taken before _lock.
        self._receiving = threading.RLock()
        self._decoder = FrameDecoder()
        self._state = AgentState.WAITING
        self._command: bytes | None = None
        self._held: list[bytes] = []
        self._woken = False
        self._awake = False

    @property
    def state(self) -> AgentState:
        """The state of the conversation."""
        return self._state

    def wake(self, now_ns: int, entropy: bytes, new_disks: bool) -> None:
        """The guest was restored from a snapshot. Its agent has said HELLO, or will say it.

        The agent sets the clock to ``now_ns`` since 1970, mixes the 32 bytes of ``entropy`` into
        the random numbers, and has the kernel look for ``new_disks``. Before the guest runs.
        """
        assert len(entropy) == ENTROPY_BYTES
        with self._receiving:
            with self._lock:
                assert self._state is AgentState.WAITING
                self._state = AgentState.READY
                self._woken = True
                self._send(encode(Kind.WAKE, _WAKE.pack(now_ns, entropy, new_disks)))
            self._start()

    def execute(self, command: bytes) -> None:
        """Run ``command`` by /bin/sh -c as soon as the agent is ready. Once per client.

        UsageError if it is longer than MAX_COMMAND or contains a NUL byte.
        """
        if len(command) > MAX_COMMAND or 0 in command:
            raise UsageError(
                "the command is longer than 128 KiB or contains a NUL byte",
                "feed a script to 'sh' on standard input instead",
            )
        with self._lock:
            assert self._command is None
            self._command = command
        self._start()

    def stdin(self, data: bytes) -> bool:
        """Send ``data`` to the command's standard input. All of it is accepted.

        False asks the caller to send no more until ``on_room`` is called: the
        command is not running yet, or has not read enough of its input.
        """
        return self._input(encode_all(Kind.STDIN, data)) if data else True

    def stdin_eof(self) -> None:
        """End the command's standard input."""
        self._input(encode(Kind.STDIN_EOF))

    def signal(self, number: int) -> None:
        """Send a signal to the command, if it runs."""
        with self._lock:
            if self._state is AgentState.RUNNING:
                self._send(encode(Kind.SIGNAL, bytes((number,))))

    def power_off(self, status: int) -> None:
        """Ask for an orderly power-off with ``status``, if the agent is ready."""
        with self._lock:
            if self._state is not AgentState.WAITING:
                self._send(encode(Kind.POWEROFF, bytes((status,))))

    def room(self) -> None:
        """Handle that the UART has room again."""
        if self.on_room is not None and self._state is AgentState.RUNNING:
            self.on_room()

    def received(self, data: bytes) -> None:
        """Take ``data`` from the guest."""
        with self._receiving:
            for frame in self._decoder.feed(data):
                if self._state is AgentState.ENDED:
                    return
                if isinstance(frame, ProtocolError):
                    self._fail(frame.reason)
                else:
                    self._take(frame)

    def _input(self, frames: bytes) -> bool:
        with self._lock:
            if self._state is AgentState.RUNNING:
                return self._send(frames)
            if self._state is not AgentState.ENDED:
                self._held.append(frames)
            return False

    def _start(self) -> None:
        """Send the command and its early input, once both command and agent are ready."""
        with self._lock:
            if self._state is not AgentState.READY or self._command is None:
                return
            self._state = AgentState.RUNNING
            room = self._send(encode_all(Kind.EXEC_PART, self._command, last=Kind.EXEC))
            for frames in self._held:
                room = self._send(frames)
            self._held.clear()
        if room:
            self.room()

    def _take(self, frame: Frame) -> None:
        state, size = self._state, len(frame.payload)
        match frame.kind:
            case Kind.HELLO if state is AgentState.WAITING and size == 2:
                self._hello(int.from_bytes(frame.payload, "little"))
            case Kind.HELLO if self._woken and size == 2:
                self._hello_again(int.from_bytes(frame.payload, "little"))
            case Kind.STDOUT if state is AgentState.RUNNING:
                self._events.stdout(frame.payload)
            case Kind.STDERR if state is AgentState.RUNNING:
                self._events.stderr(frame.payload)
            case Kind.EXIT if state is AgentState.RUNNING and size == 4:
                self._state = AgentState.ENDED
                self._events.exited(int.from_bytes(frame.payload, "little", signed=True))
            case Kind.ERROR:
                self._fail(guest_text(frame.payload))
            case _:
                self._fail(f"unexpected frame {frame.kind:#04x} of {size} bytes")

    def _hello(self, version: int) -> None:
        if self._check(version):
            self._state = AgentState.READY
            self._events.ready()
            self._start()

    def _hello_again(self, version: int) -> None:
        """The answer to WAKE, or the first word of a guest that was saved before its agent ran."""
        if self._check(version) and not self._awake:
            self._awake = True
            self._events.ready()

    def _check(self, version: int) -> bool:
        if version != PROTOCOL_VERSION:
            self._fail(f"it has protocol version {version}, not {PROTOCOL_VERSION}")
        return version == PROTOCOL_VERSION

    def _fail(self, reason: str) -> None:
        self._state = AgentState.ENDED
        self._events.failed(reason)
