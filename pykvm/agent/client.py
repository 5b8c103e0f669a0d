"""The host's side of the guest's agent: many requests side by side, for the guest's whole life.

The states of the conversation::

    WAITING --HELLO--> READY
       WAITING --WAKE, of a restored guest--> WAKING --HELLO with its number--> READY
       any state --a frame that breaks the rules, or close()--> OVER

Requests may be made in any state. Those before READY wait; those after the end
fail. A request that fails leaves the others alone.

The guest is hostile: any bytes from it lead to a callback, never to an
exception. It makes the host keep at most a window of output for each stream
whose reader counts for itself (``manual_credit``), and nothing for the others.
"""

import os
import threading
from collections.abc import Callable
from enum import Enum, auto

from pykvm.agent.mailbox import Memory, Rings
from pykvm.agent.outbox import Outbox
from pykvm.agent.protocol import (
    IDS,
    PROTOCOL_VERSION,
    Frame,
    FrameDecoder,
    Kind,
    ProtocolError,
    RunRequest,
    decode_hello,
    encode,
    encode_wake,
)
from pykvm.agent.requests import (
    BareRequest,
    CommandHandle,
    DoneEvents,
    PullEvents,
    PullHandle,
    PushEvents,
    PushHandle,
    Request,
    RunEvents,
)
from pykvm.errors import guest_text
from pykvm.lean.typing_names import Protocol


class AgentState(Enum):
    """The states of the conversation; see the module."""

    WAITING = auto()
    WAKING = auto()
    READY = auto()
    OVER = auto()


class ClientEvents(Protocol):
    """What the conversation as a whole reports, in the thread that calls ``received``."""

    def ready(self) -> None:
        """The agent has answered: after the boot, or after WAKE."""
        ...

    def failed(self, reason: str) -> None:
        """The conversation is over: the guest broke the protocol, or could not wake up.

        Every open request has got its ``failed`` before.
        """
        ...


class AgentClient:
    """The host's side, for one guest from its boot or restore to its end.

    To connect it to a UART, pass ``uart.feed`` as ``send``, and set
    ``uart.sink = client.received``. With a ``mailbox`` the guest's bell calls
    :meth:`bell`; the agent in the guest decides whether frames go there, or over
    the UART. Any thread may call any method, also within an event. Events come one
    at a time, and without a lock that a method needs.
    """

    def __init__(
        self,
        send: Callable[[bytes], object],
        events: ClientEvents,
        mailbox: Memory | None = None,
    ) -> None:
        self._rings = Rings(mailbox) if mailbox is not None else None
        self._out = Outbox(send, self._rings)
        self._events = events
        self._lock = threading.RLock()
        # Held while events are reported, so that they stay in order. Taken before _lock.
        self._receiving = threading.RLock()
        self._decoder = FrameDecoder()
        self._state = AgentState.WAITING
        self._number = 0
        self._wake_frame = b""
        self._held: list[bytes] = []
        self._requests: dict[int, Request] = {}
        self._reason = ""

    @property
    def state(self) -> AgentState:
        """The state of the conversation."""
        return self._state

    # -- the conversation -------------------------------------------------

    def wake(self, now_ns: int | None, entropy: bytes | None, new_disks: bool) -> None:
        """The guest was restored from a snapshot. Call this before it runs, and once.

        The agent sets the clock to ``now_ns`` since 1970, mixes the 32 bytes of ``entropy`` into
        the random numbers, and has the kernel look for ``new_disks``. None: not that. All that
        the guest says before it has done so is part of an earlier conversation, and ignored.
        """
        with self._receiving, self._lock:
            assert self._state is AgentState.WAITING
            # Not 0, which an agent says that has just started.
            self._number = int.from_bytes(os.urandom(8), "little") | 1
            self._decoder = FrameDecoder(self._number)
            self._state = AgentState.WAKING
            self._out.by_rings = self._rings is not None and self._rings.used
            self._wake_frame = encode_wake(self._number, now_ns, entropy, new_disks)
            self._out.send([self._wake_frame])
            if self._open:
                self._out.send(self._held)
                self._held.clear()

    def power_off(self, status: int) -> None:
        """Ask for an orderly power-off with ``status``, if the agent can be asked."""
        self._tell(Kind.POWEROFF, bytes((status,)))

    def resize(self, rows: int, columns: int) -> None:
        """The terminal behind the guest's console has this size, if the agent can be told."""
        self._tell(Kind.RESIZE, rows.to_bytes(2, "little") + columns.to_bytes(2, "little"))

    def close(self, reason: str) -> None:
        """End the conversation: every open request fails with ``reason``, and each later one."""
        with self._receiving:
            self._end(reason)

    # -- requests -----------------------------------------------------------

    def run(self, request: RunRequest, events: RunEvents) -> CommandHandle:
        """Run a command. UsageError if no guest could run it."""
        payload = request.encode()
        handle = CommandHandle(self, events, request)
        self._begin(handle, Kind.RUN, payload, Kind.RUN_PART)
        return handle

    def push(self, path: bytes, mode: int, events: PushEvents) -> PushHandle:
        """Make the file ``path`` with the permissions ``mode``. Its data go to the handle."""
        handle = PushHandle(self, events)
        self._begin(handle, Kind.PUSH, mode.to_bytes(4, "little") + path)
        return handle

    def pull(self, path: bytes, events: PullEvents) -> PullHandle:
        """Read the file ``path``."""
        handle = PullHandle(self, events)
        self._begin(handle, Kind.PULL, path)
        return handle

    def dmesg(self, events: PullEvents) -> PullHandle:
        """Read the kernel's messages."""
        handle = PullHandle(self, events)
        self._begin(handle, Kind.DMESG)
        return handle

    def rescan(self, events: DoneEvents) -> None:
        """Have the guest's kernel look for disks that were added or removed."""
        self._begin(BareRequest(self, events), Kind.RESCAN)

    def settle(self, events: DoneEvents) -> None:
        """Have the agent make ready what commands need, such as shells that wait for a line.

        For a guest that is about to be saved: those that begin from the snapshot are quicker.
        """
        self._begin(BareRequest(self, events), Kind.SETTLE)

    # -- from the guest -------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Take ``data`` from the guest's serial line."""
        with self._receiving:
            # An agent with a mailbox says nothing here.
            if not self._out.by_rings:
                self._decode(data)

    def bell(self) -> None:
        """Look into the mailbox, because the guest rings the bell.

        The guest looks there itself when this returns.
        """
        with self._receiving:
            self._look()

    def _look(self) -> None:
        rings = self._rings
        if rings is None or not rings.used or self._state is AgentState.OVER:
            return
        if not self._out.by_rings:
            with self._lock:
                self._out.by_rings = True
                if self._state is AgentState.WAKING:
                    # The agent began only after the restore, and drops what came over the line.
                    self._out.send([self._wake_frame])
        # Once: the guest rings when it has put all of it there, and waits meanwhile.
        data = rings.take()
        if data:
            self._decode(data)
        with self._lock:
            sane = self._out.flush()
        if data is None or not sane:
            self._fail("its position in the mailbox makes no sense")

    def _decode(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if self._state is AgentState.OVER:
                return
            if isinstance(frame, ProtocolError):
                self._fail(frame.reason)
            else:
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.HELLO and frame.id == 0:
            self._hello(frame.payload)
        elif self._state is not AgentState.READY:
            self._unexpected(frame)
        elif frame.kind == Kind.ERROR and frame.id == 0:
            self._fail(guest_text(frame.payload))
        else:
            self._take_for_request(frame)

    def _take_for_request(self, frame: Frame) -> None:
        request = self._requests.get(frame.id)
        if request is None:
            self._unexpected(frame)
            return
        if frame.kind in (Kind.EXIT, Kind.DONE, Kind.ERROR):
            with self._lock:
                request.over = True
                del self._requests[frame.id]
        if frame.kind == Kind.ERROR:
            request.fail(guest_text(frame.payload))
        elif not request.take(frame):
            if request.over:
                request.fail("the guest's agent makes no sense")
            self._unexpected(frame)

    def _hello(self, payload: bytes) -> None:
        hello = decode_hello(payload)
        if hello is None:
            self._fail(f"unexpected HELLO of {len(payload)} bytes")
        elif hello.version != PROTOCOL_VERSION:
            self._fail(
                f"it has protocol version {hello.version}, not {PROTOCOL_VERSION}; build the guest "
                "again (make guest)"
            )
        elif self._state is AgentState.READY or hello.number != self._number:
            self._fail("unexpected HELLO")
        elif hello.problem:
            self._fail(guest_text(hello.problem))
        else:
            with self._lock:
                self._state = AgentState.READY
                self._out.send(self._held)
                self._held.clear()
            self._events.ready()

    def _unexpected(self, frame: Frame) -> None:
        size = len(frame.payload)
        self._fail(f"unexpected frame {frame.kind:#04x} of {size} bytes for {frame.id}")

    def _fail(self, reason: str) -> None:
        if self._end(reason):
            self._events.failed(reason)

    def _end(self, reason: str) -> bool:
        with self._lock:
            if self._state is AgentState.OVER:
                return False
            self._state = AgentState.OVER
            self._reason = reason
            self._held.clear()
            self._out.clear()
            requests = list(self._requests.values())
            self._requests.clear()
            for request in requests:
                request.over = True
        for request in requests:
            request.fail(reason)
        return True

    # -- to the guest ---------------------------------------------------------

    @property
    def input_window(self) -> int:
        """Bytes of input that a request may have on their way."""
        return self._out.input_window

    @property
    def lock(self) -> threading.RLock:
        """Guards the requests' state. No event is reported with it held."""
        return self._lock

    def post(self, frames: list[bytes]) -> None:
        """Send ``frames`` in order, as soon as the agent takes them. With ``lock`` held."""
        if self._open:
            self._out.send(frames)
        elif self._state is not AgentState.OVER:
            self._held += frames

    @property
    def _open(self) -> bool:
        """The agent takes frames: it has answered, or WAKE is certain to come to it first."""
        if self._state is AgentState.WAKING:
            return self._out.by_rings or self._rings is None
        return self._state is AgentState.READY

    def _tell(self, kind: Kind, payload: bytes) -> None:
        with self._lock:
            if self._open:
                self._out.send([encode(kind, payload)])

    def _begin(
        self, request: Request, kind: Kind, payload: bytes = b"", part: Kind | None = None
    ) -> None:
        with self._lock:
            reason = self._reason
            if self._state is not AgentState.OVER:
                id = next((id for id in IDS if id not in self._requests), 0)
                reason = "" if id else "too many requests at once"
            request.over = bool(reason)
            if not reason:
                self._requests[id] = request
                request.begin(id, kind, payload, part)
        if reason:
            request.fail(reason)
