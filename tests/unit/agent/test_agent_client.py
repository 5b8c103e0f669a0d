"""The host's side of the conversation with the guest's agent: commands, and its end."""

import struct

import pytest
from agent_rig import ENTROPY, Events, Session, hello
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.agent.client import AgentState
from pykvm.agent.protocol import (
    IDS,
    Frame,
    Kind,
    RunRequest,
    encode,
)
from pykvm.agent.requests import Exit
from pykvm.errors import UsageError


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
