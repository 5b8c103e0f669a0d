"""What the host has asked the guest's agent for: one object for each request that is not over."""

from abc import ABC, abstractmethod
from collections import deque

from pykvm.agent.protocol import (
    MAX_PAYLOAD,
    OUTPUT_WINDOW,
    Frame,
    Kind,
    RunRequest,
    encode,
    encode_all,
)
from pykvm.lean.records import record
from pykvm.lean.typing_names import Any, Protocol


@record
class Exit:
    """The end of a command: ``status`` is its exit code, or ``signal`` the one that ended it.

    ``timed_out``: its time was over, and the agent sent it signals.
    """

    status: int
    signal: int
    timed_out: bool

    @property
    def shell_status(self) -> int:
        """The exit code, or 128 + the signal's number, as a shell shows it."""
        return 128 + self.signal if self.signal else self.status


class _Failing(Protocol):
    def failed(self, reason: str) -> None:
        """The request came to nothing; no more is heard of it."""
        ...


class RunEvents(_Failing, Protocol):
    """The reports of one command, in the thread that takes the guest's bytes."""

    def stdout(self, data: bytes) -> None:
        """Its standard output. While this blocks, the guest waits."""
        ...

    def stderr(self, data: bytes) -> None:
        """Its standard error. While this blocks, the guest waits."""
        ...

    def exited(self, exit: Exit) -> None:
        """It has ended; no more is heard of it."""
        ...

    def room(self) -> None:
        """Input may go on after ``stdin`` has returned False."""
        ...


class DoneEvents(_Failing, Protocol):
    """The reports of a request without data."""

    def done(self, mode: int) -> None:
        """It was done; no more is heard of it. ``mode``: the file's permissions, if it has any."""
        ...


class PushEvents(DoneEvents, Protocol):
    """The reports of a file on its way to the guest."""

    def room(self) -> None:
        """Data may go on after ``data`` has returned False."""
        ...


class PullEvents(DoneEvents, Protocol):
    """The reports of a file on its way to the host."""

    def data(self, data: bytes) -> None:
        """The next bytes. While this blocks, the guest waits."""
        ...


class Line(Protocol):
    """The part of AgentClient that requests use."""

    @property
    def input_window(self) -> int:
        """Bytes of input that a request may have on their way."""
        ...

    @property
    def lock(self) -> Any:
        """Guards the requests' state. No event is reported with it held."""
        ...

    def post(self, frames: list[bytes]) -> None:
        """Send ``frames`` in order. With ``lock`` held."""
        ...


class Request(ABC):
    """A request with its id. ``over``: nothing more is sent for it, or reported of it."""

    over = False

    def __init__(self, line: Line, events: _Failing) -> None:
        self._line = line
        self._failing = events
        self._id = 0

    def begin(self, id: int, kind: Kind, payload: bytes, part: Kind | None) -> None:
        """Ask the guest. With the line's lock held."""
        self._id = id
        self._line.post(encode_all(part or kind, payload, id, last=kind))

    def fail(self, reason: str) -> None:
        """Report that the request came to nothing."""
        self._failing.failed(reason)

    @abstractmethod
    def take(self, frame: Frame) -> bool:
        """Take a frame of the guest's for this request; False if it has no place here."""

    def _post(self, kind: Kind, payload: bytes = b"") -> None:
        with self._line.lock:
            if not self.over:
                self._line.post([encode(kind, payload, self._id)])


class BareRequest(Request):
    """A request without data."""

    def __init__(self, line: Line, events: DoneEvents) -> None:
        super().__init__(line, events)
        self._events = events

    def take(self, frame: Frame) -> bool:
        """See Request."""
        return _take_done(frame, self._events)


class _Input(Request):
    """A request with input, of which at most a window is on its way."""

    def __init__(self, line: Line, events: RunEvents | PushEvents) -> None:
        super().__init__(line, events)
        self._input_events = events
        self._pending: deque[bytes] = deque()
        self._on_their_way = 0
        self._ended = False
        self._eof_sent = False
        self._asked_to_wait = False

    def stdin(self, data: bytes) -> bool:
        """Send ``data`` as input. All of it is accepted.

        False asks the caller to send no more until ``room()`` is reported: the request has not
        read enough of its input.
        """
        with self._line.lock:
            if self.over or self._ended:
                return True
            if data:
                self._pending.append(data)
            self._pump()
            self._asked_to_wait = bool(self._pending)
            return not self._pending

    def stdin_eof(self) -> None:
        """End the input."""
        with self._line.lock:
            self._ended = True
            self._pump()

    def _pump(self) -> None:
        """Send what the window allows. With the lock held."""
        frames = []
        while self._pending and not self.over:
            room = min(self._line.input_window - self._on_their_way, MAX_PAYLOAD)
            if room <= 0:
                break
            data = self._pending.popleft()
            if len(data) > room:
                self._pending.appendleft(memoryview(data)[room:].tobytes())
                data = data[:room]
            self._on_their_way += len(data)
            frames.append(encode(Kind.STDIN, data, self._id))
        if self._ended and not self._pending and not self._eof_sent and not self.over:
            self._eof_sent = True
            frames.append(encode(Kind.STDIN_EOF, b"", self._id))
        if frames:
            self._line.post(frames)

    def _take_credit(self, frame: Frame) -> bool:
        taken = int.from_bytes(frame.payload, "little")
        if len(frame.payload) != 4 or not 0 < taken <= self._on_their_way:
            return False
        with self._line.lock:
            self._on_their_way -= taken
            self._pump()
            room = self._asked_to_wait and not self._pending
            self._asked_to_wait &= not room
        if room:
            self._input_events.room()
        return True


class CommandHandle(_Input):
    """A command that was asked for. After its end, its methods have no effect."""

    def __init__(self, line: Line, events: RunEvents, request: RunRequest) -> None:
        super().__init__(line, events)
        self._events = events
        self._manual = request.manual_credit
        self._ended = not request.stdin
        self._eof_sent = not request.stdin
        # By stream: what the guest may still send, and what was read and not told yet.
        self._credit = {Kind.STDOUT: OUTPUT_WINDOW, Kind.STDERR: OUTPUT_WINDOW}
        self._read = {Kind.STDOUT: 0, Kind.STDERR: 0}

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._post(Kind.SIGNAL, bytes((number,)))

    def consumed(self, stdout: int = 0, stderr: int = 0) -> None:
        """So many more bytes were read: the guest may send as many again. See manual_credit."""
        with self._line.lock:
            self._read[Kind.STDOUT] += stdout
            self._read[Kind.STDERR] += stderr
            if self.over or max(self._read.values()) < OUTPUT_WINDOW // 2:
                return
            payload = b""
            for stream, count in self._read.items():
                payload += count.to_bytes(4, "little")
                self._credit[stream] += count
                self._read[stream] = 0
            self._line.post([encode(Kind.OUTPUT_CREDIT, payload, self._id)])

    def take(self, frame: Frame) -> bool:
        """See Request."""
        data = frame.payload
        match frame.kind:
            case Kind.STDOUT if self._take_output(Kind.STDOUT, len(data)):
                self._events.stdout(data)
                if not self._manual:
                    self.consumed(stdout=len(data))
            case Kind.STDERR if self._take_output(Kind.STDERR, len(data)):
                self._events.stderr(data)
                if not self._manual:
                    self.consumed(stderr=len(data))
            case Kind.CREDIT:
                return self._take_credit(frame)
            case Kind.EXIT if len(data) == 3 and data[1] < 128:
                self._events.exited(Exit(data[0], data[1], bool(data[2])))
            case _:
                return False
        return True

    def _take_output(self, stream: Kind, size: int) -> bool:
        with self._line.lock:
            if size > self._credit[stream]:
                return False
            self._credit[stream] -= size
            return True


class PushHandle(_Input):
    """A file on its way to the guest. It appears there whole, once :meth:`end` was called."""

    def __init__(self, line: Line, events: PushEvents) -> None:
        super().__init__(line, events)
        self._events = events

    def data(self, data: bytes) -> bool:
        """Send the next bytes. All are accepted; False: send no more until ``room()``."""
        return self.stdin(data)

    def end(self) -> None:
        """The file is complete."""
        self.stdin_eof()

    def cancel(self) -> None:
        """Give up: the request fails, and no file appears."""
        self._post(Kind.SIGNAL, b"\x01")

    def take(self, frame: Frame) -> bool:
        """See Request."""
        if frame.kind == Kind.CREDIT:
            return self._take_credit(frame)
        return _take_done(frame, self._events)


class PullHandle(Request):
    """A file on its way to the host."""

    def __init__(self, line: Line, events: PullEvents) -> None:
        super().__init__(line, events)
        self._events = events
        self._credit = OUTPUT_WINDOW

    def cancel(self) -> None:
        """Give up: the request fails."""
        self._post(Kind.SIGNAL, b"\x01")

    def take(self, frame: Frame) -> bool:
        """See Request."""
        if frame.kind != Kind.DATA:
            return _take_done(frame, self._events)
        size = len(frame.payload)
        if size > self._credit:
            return False
        self._credit -= size
        self._events.data(frame.payload)
        if self._credit <= OUTPUT_WINDOW // 2:
            more = OUTPUT_WINDOW - self._credit
            self._credit = OUTPUT_WINDOW
            self._post(Kind.OUTPUT_CREDIT, more.to_bytes(4, "little") + bytes(4))
        return True


def _take_done(frame: Frame, events: DoneEvents) -> bool:
    if frame.kind != Kind.DONE or len(frame.payload) != 4:
        return False
    events.done(int.from_bytes(frame.payload, "little"))
    return True
