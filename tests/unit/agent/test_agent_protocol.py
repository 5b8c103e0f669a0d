"""The agent's protocol: the codec, and the host's side of the conversation."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.agent.protocol import (
    MAX_COMMAND,
    MAX_PAYLOAD,
    AgentClient,
    AgentState,
    Frame,
    FrameDecoder,
    Kind,
    ProtocolError,
    encode,
    encode_all,
)
from pykvm.errors import UsageError

HELLO = encode(Kind.HELLO, b"\x02\x00")


class Session:
    """A client between a line that can be full and a recorder of events."""

    def __init__(self):
        self.line = bytearray()
        self.events = []
        self.has_room = True
        self.rooms = 0
        self.client = AgentClient(self._send, self)
        self.client.on_room = self._on_room

    def _send(self, data):
        self.line += data
        return self.has_room

    def _on_room(self):
        self.rooms += 1

    def sent(self):
        """The frames that the guest got since the last call."""
        frames = FrameDecoder().feed(bytes(self.line))
        self.line.clear()
        return frames

    def get(self, kind, payload=b""):
        self.client.received(encode(kind, payload))

    def ready(self):
        self.events.append("ready")

    def stdout(self, data):
        self.events.append(("stdout", data))

    def stderr(self, data):
        self.events.append(("stderr", data))

    def exited(self, status):
        self.events.append(("exited", status))

    def failed(self, reason):
        self.events.append(("failed", reason))


@pytest.fixture
def session():
    return Session()


@pytest.fixture
def running(session):
    session.client.execute(b"true")
    session.client.received(HELLO)
    session.sent()
    session.events.clear()
    session.rooms = 0
    return session


def test_frame_layout():
    assert encode(Kind.STDOUT, b"abc") == b"\x02\x00\x03\x00abc"
    assert encode(Kind.STDIN_EOF) == b"\x84\x00\x00\x00"


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=10),
    st.integers(1, 30),
)
def test_frames_survive_any_cuts(items, step):
    data = b"".join(encode(kind, payload) for kind, payload in items)
    decoder = FrameDecoder()
    frames = []
    for start in range(0, len(data), step):
        frames += decoder.feed(data[start : start + step])
    assert frames == [Frame(kind, payload) for kind, payload in items]


@pytest.mark.parametrize("header", [b"\x02\x01\x00\x00", b"\x02\x00\x01\x10", b"\x02\x00\xff\xff"])
def test_a_bad_header_ends_the_conversation(header):
    decoder = FrameDecoder()
    frames = decoder.feed(HELLO + header + HELLO)
    assert frames[0] == Frame(Kind.HELLO, b"\x02\x00")
    assert isinstance(frames[1], ProtocolError)
    assert len(frames) == 2
    assert decoder.feed(HELLO) == []


def test_the_largest_frame_passes():
    assert FrameDecoder().feed(encode(Kind.STDOUT, bytes(MAX_PAYLOAD))) == [
        Frame(Kind.STDOUT, bytes(MAX_PAYLOAD))
    ]


@given(st.binary(max_size=3 * MAX_PAYLOAD))
def test_long_data_is_split(data):
    frames = FrameDecoder().feed(encode_all(Kind.EXEC_PART, data, last=Kind.EXEC))
    assert b"".join(frame.payload for frame in frames) == data
    assert [frame.kind for frame in frames] == [Kind.EXEC_PART] * (len(frames) - 1) + [Kind.EXEC]


def test_a_command_from_hello_to_exit(session):
    session.client.execute(b"echo hi")
    assert session.sent() == []
    assert session.client.state is AgentState.WAITING
    session.client.received(HELLO)
    assert session.sent() == [Frame(Kind.EXEC, b"echo hi")]
    session.get(Kind.STDOUT, b"\x00\xffhi\n")
    session.get(Kind.STDERR, b"oops")
    session.get(Kind.EXIT, struct.pack("<i", 3))
    assert session.events == [
        "ready",
        ("stdout", b"\x00\xffhi\n"),
        ("stderr", b"oops"),
        ("exited", 3),
    ]


def test_the_command_may_come_after_hello(session):
    session.client.received(HELLO)
    assert session.client.state is AgentState.READY
    assert session.sent() == []
    session.client.execute(b"true")
    assert session.sent() == [Frame(Kind.EXEC, b"true")]


def test_a_long_command_goes_in_parts(session):
    command = b"echo " + b"x" * 10_000
    session.client.received(HELLO)
    session.client.execute(command)
    frames = session.sent()
    assert [frame.kind for frame in frames] == [Kind.EXEC_PART, Kind.EXEC_PART, Kind.EXEC]
    assert b"".join(frame.payload for frame in frames) == command


@pytest.mark.parametrize("command", [b"x" * (MAX_COMMAND + 1), b"a\0b"])
def test_an_impossible_command_is_a_usage_error(session, command):
    with pytest.raises(UsageError):
        session.client.execute(command)


def test_input_before_the_command_waits_behind_it(session):
    assert not session.client.stdin(b"early")
    session.client.stdin_eof()
    session.client.execute(b"cat")
    session.client.received(HELLO)
    assert session.sent() == [
        Frame(Kind.EXEC, b"cat"),
        Frame(Kind.STDIN, b"early"),
        Frame(Kind.STDIN_EOF, b""),
    ]
    assert session.rooms == 1
    assert session.client.stdin(b"late")


def test_a_full_line_stops_the_input(running):
    running.has_room = False
    assert not running.client.stdin(b"x" * 5000)
    assert [len(frame.payload) for frame in running.sent()] == [MAX_PAYLOAD, 904]
    assert running.rooms == 0
    running.client.room()
    assert running.rooms == 1


def test_a_line_that_is_full_at_the_start_does_not_ask_for_input(session):
    session.has_room = False
    session.client.execute(b"cat")
    session.client.received(HELLO)
    assert session.rooms == 0


def test_empty_input_sends_no_frame(running):
    assert running.client.stdin(b"")
    assert running.sent() == []


def test_only_a_running_command_gets_signals(session):
    session.client.signal(2)
    session.client.power_off(0)
    assert session.sent() == []
    session.client.execute(b"sleep 9")
    session.client.received(HELLO)
    session.sent()
    session.client.signal(2)
    session.get(Kind.EXIT, struct.pack("<i", 130))
    session.client.signal(2)
    session.client.power_off(7)
    assert session.sent() == [Frame(Kind.SIGNAL, b"\x02"), Frame(Kind.POWEROFF, b"\x07")]


@pytest.mark.parametrize(
    "wrong",
    [
        HELLO,
        encode(Kind.EXIT, b"\0\0"),
        encode(Kind.STDIN, b"x"),
        encode(0x7F),
        b"\x02\x01\x00\x00",
    ],
)
def test_a_frame_out_of_place_ends_the_conversation(running, wrong):
    running.client.received(wrong)
    assert [event[0] for event in running.events] == ["failed"]
    running.get(Kind.STDOUT, b"more")
    running.get(Kind.EXIT, bytes(4))
    assert len(running.events) == 1


@pytest.mark.parametrize("wrong", [encode(Kind.STDOUT, b"x"), encode(Kind.EXIT, bytes(4))])
def test_nothing_may_come_before_hello(session, wrong):
    session.client.received(wrong)
    assert [event[0] for event in session.events] == ["failed"]


# -- a guest that was restored from a snapshot ---------------------------------

ENTROPY = bytes(range(32))


def test_the_frame_that_wakes_a_restored_guest(session):
    session.client.wake(0x0102030405060708, ENTROPY, new_disks=True)
    assert bytes(session.line) == (
        b"\x88\x00\x29\x00" + b"\x08\x07\x06\x05\x04\x03\x02\x01" + ENTROPY + b"\x01"
    )
    assert session.events == []
    assert session.client.state is AgentState.READY


@given(st.integers(0, (1 << 64) - 1), st.binary(min_size=32, max_size=32), st.booleans())
def test_time_entropy_and_disks_reach_a_restored_guest(now_ns, entropy, new_disks):
    session = Session()
    session.client.wake(now_ns, entropy, new_disks)
    (frame,) = session.sent()
    assert frame.kind == Kind.WAKE
    assert struct.unpack("<Q32s?", frame.payload) == (now_ns, entropy, new_disks)


@pytest.mark.parametrize("first", ["execute", "wake"])
def test_the_command_of_a_restored_guest_comes_after_it_is_awake(session, first):
    assert not session.client.stdin(b"early")
    if first == "execute":
        session.client.execute(b"cat")
        assert session.sent() == []
    session.client.wake(1, ENTROPY, new_disks=False)
    if first == "wake":
        session.client.execute(b"cat")
    assert session.sent() == [
        Frame(Kind.WAKE, struct.pack("<Q", 1) + ENTROPY + b"\0"),
        Frame(Kind.EXEC, b"cat"),
        Frame(Kind.STDIN, b"early"),
    ]
    assert session.client.state is AgentState.RUNNING
    assert session.rooms == 1
    session.client.received(HELLO)
    session.get(Kind.STDOUT, b"early")
    session.get(Kind.EXIT, bytes(4))
    assert session.events == ["ready", ("stdout", b"early"), ("exited", 0)]


def test_the_event_of_a_restored_guest_may_use_the_client(session):
    session.ready = lambda: session.client.execute(b"ls")
    session.client.wake(1, ENTROPY, new_disks=False)
    session.client.received(HELLO)
    assert [frame.kind for frame in session.sent()] == [Kind.WAKE, Kind.EXEC]


def test_a_restored_guest_can_be_powered_off(session):
    session.client.wake(1, ENTROPY, new_disks=False)
    session.sent()
    session.client.signal(2)
    session.client.power_off(3)
    assert session.sent() == [Frame(Kind.POWEROFF, b"\x03")]


def test_a_restored_guest_is_ready_when_its_agent_answers(session):
    """A guest that was saved before its agent ran says HELLO twice."""
    session.client.wake(1, ENTROPY, new_disks=False)
    assert session.events == []
    session.client.received(HELLO + HELLO)
    assert session.events == ["ready"]
    assert session.client.state is AgentState.READY


def test_a_restored_guest_with_another_agent_is_refused(session):
    session.client.wake(1, ENTROPY, new_disks=False)
    session.client.received(encode(Kind.HELLO, b"\x01\x00"))
    assert session.events == [("failed", "it has protocol version 1, not 2")]


def test_a_restored_guest_that_cannot_wake_says_why(session):
    session.client.execute(b"true")
    session.client.wake(1, ENTROPY, new_disks=True)
    session.get(Kind.ERROR, b"new disks could not be found: No such file or directory")
    assert session.events == [("failed", "new disks could not be found: No such file or directory")]


@pytest.mark.parametrize("entropy", [b"", bytes(31), bytes(33)])
def test_entropy_of_another_length_is_a_bug(session, entropy):
    with pytest.raises(AssertionError):
        session.client.wake(1, entropy, new_disks=False)
    assert session.sent() == []


@pytest.mark.parametrize("version", [0, 1, 3, 0xFFFF])
def test_another_version_is_refused(session, version):
    session.client.execute(b"true")
    session.client.received(encode(Kind.HELLO, struct.pack("<H", version)))
    assert session.events == [("failed", f"it has protocol version {version}, not 2")]
    assert session.sent() == []


def test_an_error_of_the_agent_is_passed_on(running):
    running.get(Kind.ERROR, "nö\udc80".encode("utf-8", "surrogateescape"))
    assert running.events == [("failed", "nö\ufffd")]


def test_an_error_of_the_agent_cannot_drive_a_terminal(running):
    running.get(Kind.ERROR, b"\x1b[2Jbye\n")
    assert running.events == [("failed", r"\x1b[2Jbye")]


def test_an_event_may_use_the_client(session):
    session.ready = lambda: session.client.execute(b"ls")
    session.client.received(HELLO)
    assert session.sent() == [Frame(Kind.EXEC, b"ls")]


guest_bytes = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(encode, st.sampled_from(list(Kind)), st.binary(max_size=5)),
        st.just(HELLO),
    ),
    max_size=12,
)


@given(guest_bytes, st.booleans(), st.booleans())
def test_a_hostile_guest_never_raises_and_ends_once(pieces, execute, restored):
    session = Session()
    if execute:
        session.client.execute(b"true")
    if restored:
        session.client.wake(1, ENTROPY, new_disks=False)
    for piece in pieces:
        session.client.received(piece)
    ends = [event for event in session.events if event[0] in ("exited", "failed")]
    assert len(ends) <= 1
    assert not ends or session.events[-1] == ends[0]
