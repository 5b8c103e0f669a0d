"""The host's side of the conversation with the guest's agent."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.agent.client import AgentClient, AgentState
from pykvm.agent.outbox import LINE_WINDOW
from pykvm.agent.protocol import (
    IDS,
    MAX_PAYLOAD,
    OUTPUT_WINDOW,
    Frame,
    FrameDecoder,
    Kind,
    RunRequest,
    encode,
)
from pykvm.agent.requests import Exit
from pykvm.errors import UsageError

ENTROPY = bytes(range(32))


def hello(number=0, version=3, problem=b""):
    return encode(Kind.HELLO, struct.pack("<HQ", version, number) + problem)


class Events:
    """Records the events of one request, or of the conversation."""

    def __init__(self):
        self.log = []

    def ready(self):
        self.log.append("ready")

    def stdout(self, data):
        self.log.append(("stdout", data))

    def stderr(self, data):
        self.log.append(("stderr", data))

    def data(self, data):
        self.log.append(("data", data))

    def exited(self, exit):
        self.log.append(exit)

    def done(self, mode):
        self.log.append(("done", mode))

    def failed(self, reason):
        self.log.append(("failed", reason))

    def room(self):
        self.log.append("room")


class Session:
    """A client, the line to its guest, and a recorder of events."""

    def __init__(self):
        self.line = bytearray()
        self.events = Events()
        self.client = AgentClient(self._send, self.events)

    def _send(self, data):
        self.line += data
        return True

    def sent(self):
        """The frames that the guest got since the last call."""
        frames = FrameDecoder().feed(bytes(self.line))
        self.line.clear()
        return frames

    def get(self, kind, payload=b"", id=1):
        self.client.received(encode(kind, payload, id))

    def run(self, command=b"true", **more):
        events = Events()
        return self.client.run(RunRequest(command, **more), events), events

    def wake(self, *, now=1, entropy=ENTROPY, disks=False):
        """Wakes the guest, and returns the number that it has to answer with."""
        self.client.wake(now, entropy, disks)
        frame = FrameDecoder().feed(bytes(self.line))[0]
        return int.from_bytes(frame.payload[:8], "little")


@pytest.fixture
def session():
    return Session()


@pytest.fixture
def ready(session):
    session.client.received(hello())
    session.events.log.clear()
    return session


def test_a_command_from_hello_to_exit(session):
    _, events = session.run(b"echo hi")
    assert session.sent() == []
    session.client.received(hello())
    assert session.events.log == ["ready"]
    assert session.sent() == [Frame(Kind.RUN, 1, RunRequest(b"echo hi").encode())]
    session.get(Kind.STDOUT, b"\x00\xffhi\n")
    session.get(Kind.STDERR, b"oops")
    session.get(Kind.EXIT, b"\3\0\0")
    assert events.log == [
        ("stdout", b"\x00\xffhi\n"),
        ("stderr", b"oops"),
        Exit(status=3, signal=0, timed_out=False),
    ]
    assert session.client.state is AgentState.READY


def test_the_end_by_a_signal_or_the_time_limit_is_told(ready):
    for payload, exit in ((b"\0\x09\0", Exit(0, 9, False)), (b"\0\x0f\1", Exit(0, 15, True))):
        _, events = ready.run()
        ready.get(Kind.EXIT, payload)
        assert events.log == [exit]
        assert exit.shell_status == 128 + exit.signal
    assert Exit(3, 0, False).shell_status == 3


def test_many_commands_each_with_its_own_events(ready):
    commands = [ready.run(b"%d" % number) for number in range(10)]
    assert [frame.id for frame in ready.sent()] == list(range(1, 11))
    for id in reversed(range(1, 11)):
        ready.get(Kind.STDOUT, b"%d" % id, id)
        ready.get(Kind.EXIT, bytes([id, 0, 0]), id)
    for id, (_, events) in enumerate(commands, 1):
        assert events.log == [("stdout", b"%d" % id), Exit(id, 0, False)]


def test_an_id_is_used_again_after_the_end(ready):
    for kind, payload in ((Kind.EXIT, bytes(3)), (Kind.ERROR, b"no")):
        ready.run()
        ready.get(kind, payload)
        assert [frame.id for frame in ready.sent()] == [1]


def test_a_request_that_fails_leaves_the_others_alone(ready):
    _, one = ready.run()
    _, two = ready.run()
    ready.get(Kind.ERROR, "nö\udc80\x1b[2J".encode("utf-8", "surrogateescape"), 1)
    ready.get(Kind.EXIT, bytes(3), 2)
    assert one.log == [("failed", "nö\ufffd\\x1b[2J")]
    assert two.log == [Exit(0, 0, False)]
    assert ready.events.log == []


def test_without_a_free_id_a_request_fails_alone(ready):
    for _ in IDS:
        ready.run()
    handle, events = ready.run()
    assert events.log == [("failed", "too many requests at once")]
    ready.sent()
    assert handle.stdin(b"x")
    handle.signal(9)
    assert ready.sent() == []
    ready.get(Kind.EXIT, bytes(3), 7)
    ready.run()
    assert [frame.id for frame in ready.sent()] == [7]


def test_a_long_command_goes_in_parts_that_nothing_divides(ready):
    command = b"x" * 100_000
    ready.run(command)
    frames = ready.sent()
    assert [frame.kind for frame in frames] == [Kind.RUN_PART] * 3 + [Kind.RUN]
    assert b"".join(frame.payload for frame in frames) == RunRequest(command).encode()


def test_an_impossible_command_is_a_usage_error_and_takes_no_id(ready):
    with pytest.raises(UsageError):
        ready.run(b"a\0b")
    ready.run()
    assert [frame.id for frame in ready.sent()] == [1]


# -- input ---------------------------------------------------------------------


def test_input_before_the_agent_waits_behind_the_command(session):
    handle, events = session.run(b"cat")
    assert handle.stdin(b"early")
    handle.stdin_eof()
    session.client.received(hello())
    assert session.sent()[1:] == [Frame(Kind.STDIN, 1, b"early"), Frame(Kind.STDIN_EOF, 1, b"")]
    assert events.log == []


def test_input_beyond_the_window_waits_for_credit(ready):
    handle, events = ready.run(b"cat")
    ready.sent()
    data = bytes(range(250)) * 40
    assert not handle.stdin(data)
    handle.stdin_eof()
    (first,) = ready.sent()
    assert first.payload == data[:LINE_WINDOW]
    ready.get(Kind.CREDIT, struct.pack("<I", 96))
    (second,) = ready.sent()
    assert second.payload == data[LINE_WINDOW : LINE_WINDOW + 96]
    assert events.log == []
    arrived = first.payload + second.payload
    while not events.log:
        ready.get(Kind.CREDIT, struct.pack("<I", LINE_WINDOW))
        more = ready.sent()
        arrived += b"".join(frame.payload for frame in more)
    assert arrived == data
    assert more[-1].kind == Kind.STDIN_EOF
    assert events.log == ["room"]


def test_one_command_that_does_not_read_delays_no_other(ready):
    slow, _ = ready.run(b"sleep 9")
    quick, _ = ready.run(b"cat")
    assert not slow.stdin(bytes(2 * LINE_WINDOW))
    ready.sent()
    assert quick.stdin(b"now")
    assert ready.sent() == [Frame(Kind.STDIN, 2, b"now")]


def test_without_input_nothing_is_sent(ready):
    handle, _ = ready.run(b"true", stdin=False)
    handle.stdin(b"x")
    handle.stdin_eof()
    assert [frame.kind for frame in ready.sent()] == [Kind.RUN]


def test_empty_input_sends_no_frame(ready):
    handle, _ = ready.run()
    ready.sent()
    assert handle.stdin(b"")
    assert ready.sent() == []


def test_after_the_end_nothing_is_sent(ready):
    handle, _ = ready.run()
    ready.sent()
    handle.signal(2)
    assert ready.sent() == [Frame(Kind.SIGNAL, 1, b"\x02")]
    ready.get(Kind.EXIT, bytes(3))
    handle.signal(2)
    assert handle.stdin(b"x" * 100_000)
    handle.stdin_eof()
    handle.consumed(stdout=OUTPUT_WINDOW)
    assert ready.sent() == []


# -- output ---------------------------------------------------------------------


def test_the_guest_gets_credit_for_the_output_that_was_taken(ready):
    _, events = ready.run()
    ready.sent()
    total = 0
    for _ in range(20):
        ready.get(Kind.STDOUT, bytes(MAX_PAYLOAD))
        ready.get(Kind.STDERR, b"x")
        for frame in ready.sent():
            assert frame.kind == Kind.OUTPUT_CREDIT
            total += struct.unpack("<II", frame.payload)[0]
    assert 20 * MAX_PAYLOAD - total < OUTPUT_WINDOW
    assert ready.events.log == []
    assert len(events.log) == 40


def test_a_reader_that_counts_for_itself_holds_up_its_own_stream(ready):
    handle, _ = ready.run(manual_credit=True)
    ready.sent()
    for _ in range(OUTPUT_WINDOW // MAX_PAYLOAD):
        ready.get(Kind.STDOUT, bytes(MAX_PAYLOAD))
    assert ready.sent() == []
    handle.consumed(stdout=OUTPUT_WINDOW // 2)
    (frame,) = ready.sent()
    assert struct.unpack("<II", frame.payload) == (OUTPUT_WINDOW // 2, 0)
    ready.get(Kind.STDERR, b"x")
    assert ready.events.log == []


@pytest.mark.parametrize("kind", [Kind.STDOUT, Kind.STDERR, Kind.DATA])
def test_a_guest_that_sends_more_than_its_credit_is_refused(ready, kind):
    if kind == Kind.DATA:
        # A pull gives credit by itself.
        ready.client.pull(b"/x", Events())
        ready.get(Kind.STDOUT, b"x")
    else:
        ready.run(manual_credit=True)
        for _ in range(OUTPUT_WINDOW // MAX_PAYLOAD):
            ready.get(kind, bytes(MAX_PAYLOAD))
        assert ready.events.log == []
        ready.get(kind, b"x")
    assert [event[0] for event in ready.events.log] == ["failed"]


# -- files, messages, disks --------------------------------------------------------


def test_a_file_is_pushed(ready):
    events = Events()
    handle = ready.client.push(b"/tmp/x", 0o755, events)
    assert handle.data(b"content")
    handle.end()
    assert ready.sent() == [
        Frame(Kind.PUSH, 1, struct.pack("<I", 0o755) + b"/tmp/x"),
        Frame(Kind.STDIN, 1, b"content"),
        Frame(Kind.STDIN_EOF, 1, b""),
    ]
    ready.get(Kind.CREDIT, struct.pack("<I", 7))
    ready.get(Kind.DONE, struct.pack("<I", 0o755))
    assert events.log == [("done", 0o755)]


@pytest.mark.parametrize("what", ["pull", "dmesg"])
def test_data_are_pulled_with_credit(ready, what):
    events = Events()
    if what == "pull":
        ready.client.pull(b"/x", events)
        assert ready.sent() == [Frame(Kind.PULL, 1, b"/x")]
    else:
        ready.client.dmesg(events)
        assert ready.sent() == [Frame(Kind.DMESG, 1, b"")]
    total = 0
    for _ in range(20):
        ready.get(Kind.DATA, bytes(MAX_PAYLOAD))
        total += sum(struct.unpack("<II", frame.payload)[0] for frame in ready.sent())
    assert 20 * MAX_PAYLOAD - total < OUTPUT_WINDOW
    ready.get(Kind.DONE, struct.pack("<I", 0o644))
    assert len(events.log) == 21
    assert events.log[-1] == ("done", 0o644)


def test_a_missing_file_is_an_error_of_the_request(ready):
    events = Events()
    ready.client.pull(b"/x", events)
    ready.get(Kind.ERROR, b"/x: No such file or directory")
    assert events.log == [("failed", "/x: No such file or directory")]
    assert ready.events.log == []


def test_transfers_can_be_cancelled(ready):
    for handle in (ready.client.pull(b"/x", Events()), ready.client.push(b"/x", 0, Events())):
        ready.sent()
        handle.cancel()
        assert [frame.kind for frame in ready.sent()] == [Kind.SIGNAL]


@pytest.mark.parametrize(("name", "kind"), [("rescan", Kind.RESCAN), ("settle", Kind.SETTLE)])
def test_requests_without_data(ready, name, kind):
    events = Events()
    getattr(ready.client, name)(events)
    assert ready.sent() == [Frame(kind, 1, b"")]
    ready.get(Kind.DONE, bytes(4))
    assert events.log == [("done", 0)]


def test_the_size_of_the_terminal_and_power_off_need_an_agent(session):
    session.client.resize(24, 80)
    session.client.power_off(3)
    assert session.sent() == []
    session.client.received(hello())
    session.client.resize(24, 80)
    session.client.power_off(3)
    assert session.sent() == [
        Frame(Kind.RESIZE, 0, struct.pack("<HH", 24, 80)),
        Frame(Kind.POWEROFF, 0, b"\3"),
    ]


# -- a guest that was restored from a snapshot ---------------------------------


def test_a_restored_guest_gets_its_requests_behind_wake(session):
    handle, events = session.run(b"cat")
    handle.stdin(b"early")
    number = session.wake(now=77, disks=True)
    wake, *rest = session.sent()
    assert struct.unpack("<QBQ32s", wake.payload) == (number, 7, 77, ENTROPY)
    assert [frame.kind for frame in rest] == [Kind.RUN, Kind.STDIN]
    session.run(b"second")
    assert [frame.kind for frame in session.sent()] == [Kind.RUN]
    assert session.client.state is AgentState.WAKING
    session.client.received(hello(number))
    session.get(Kind.EXIT, bytes(3))
    assert session.events.log == ["ready"]
    assert events.log == [Exit(0, 0, False)]


def test_what_a_restored_guest_says_first_belongs_to_nobody(session):
    _, events = session.run()
    number = session.wake()
    late = encode(Kind.STDOUT, b"old", 1) + encode(Kind.EXIT, bytes(3), 1) + hello()
    for byte in late[3:] + hello(number) + encode(Kind.EXIT, b"\5\0\0", 1):
        session.client.received(bytes([byte]))
    assert events.log == [Exit(5, 0, False)]
    assert session.events.log == ["ready"]


def test_a_restored_guest_that_cannot_wake_says_why(session):
    _, events = session.run()
    number = session.wake()
    session.client.received(hello(number, problem=b"the clock could not be set: why\x1b"))
    failed = ("failed", "the clock could not be set: why\\x1b")
    assert session.events.log == [failed]
    assert events.log == [failed]


# -- the end -----------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2, 4, 0xFFFF])
def test_another_version_is_refused(session, version):
    _, events = session.run()
    session.client.received(hello(version=version))
    failed = (
        "failed",
        f"it has protocol version {version}, not 3; build the guest again (make guest)",
    )
    assert session.events.log == [failed]
    assert events.log == [failed]
    assert session.sent() == []


@pytest.mark.parametrize(
    "wrong",
    [
        hello(),
        encode(Kind.HELLO, b"\3\0"),
        encode(Kind.EXIT, b"\0\0", 1),
        encode(Kind.EXIT, b"\0\xff\0", 1),
        encode(Kind.DONE, bytes(4), 1),
        encode(Kind.DATA, b"", 1),
        encode(Kind.STDIN, b"x", 1),
        encode(Kind.STDOUT, b"x", 2),
        encode(Kind.ERROR, b"x", 2),
        encode(Kind.ERROR, b"a malformed frame", 0),
        encode(Kind.CREDIT, bytes(4), 1),
        encode(Kind.CREDIT, b"\1\0\0\0", 1),
        encode(Kind.CREDIT, b"\1", 1),
        encode(0x7F),
        b"\x02\x01\xff\xff",
    ],
)
def test_a_frame_out_of_place_ends_the_conversation(ready, wrong):
    _, events = ready.run()
    ready.client.received(wrong)
    assert [event[0] for event in ready.events.log] == ["failed"]
    assert [event[0] for event in events.log] == ["failed"]
    ready.get(Kind.STDOUT, b"more")
    ready.get(Kind.EXIT, bytes(3))
    assert len(events.log) == len(ready.events.log) == 1
    _, late = ready.run()
    assert late.log == ready.events.log


@pytest.mark.parametrize("wrong", [encode(Kind.STDOUT, b"x", 1), encode(Kind.EXIT, bytes(3), 1)])
def test_nothing_may_come_before_hello(session, wrong):
    session.run()
    session.client.received(wrong)
    assert [event[0] for event in session.events.log] == ["failed"]


def test_closing_fails_every_open_request_and_each_later_one(ready):
    handle, one = ready.run()
    ready.client.close("the guest was put back")
    _, two = ready.run()
    ready.get(Kind.EXIT, bytes(3))
    ready.sent()
    handle.signal(9)
    ready.client.power_off(0)
    ready.client.close("again")
    assert one.log == two.log == [("failed", "the guest was put back")]
    assert ready.events.log == []
    assert ready.sent() == []


def test_an_event_may_use_the_client(session):
    session.events.ready = lambda: session.run(b"ls")
    session.client.received(hello())
    assert [frame.kind for frame in session.sent()] == [Kind.RUN]


guest_bytes = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(
            encode,
            st.sampled_from([kind for kind in Kind if kind < 0x80]),
            st.one_of(st.binary(max_size=5), st.integers(0, 9).map(lambda n: struct.pack("<I", n))),
            st.integers(0, 5),
        ),
        st.just(hello()),
    ),
    max_size=20,
)


@settings(max_examples=300)
@given(guest_bytes, st.booleans(), st.booleans())
def test_a_hostile_guest_never_raises_and_each_request_ends_once(pieces, early, restored):
    session = Session()
    requests = []

    def ask():
        handle, events = session.run()
        handle.stdin(b"x" * 10)
        push, pull, scan = Events(), Events(), Events()
        session.client.push(b"/x", 0, push).data(b"x" * 10_000)
        session.client.pull(b"/x", pull)
        session.client.rescan(scan)
        requests.extend((events, push, pull, scan))

    if early:
        ask()
    if restored:
        session.client.received(hello(session.wake()))
    else:
        session.client.received(hello())
    if not early:
        ask()
    for piece in pieces:
        session.client.received(piece)
    session.client.close("over")
    assert len([event for event in session.events.log if event[0] == "failed"]) <= 1
    for events in requests:
        ends = [e for e in events.log if isinstance(e, Exit) or e[0] in ("done", "failed")]
        assert len(ends) == 1
        assert events.log[-1] == ends[0]
