"""Input, output and files of the requests to the guest's agent."""

import struct

import pytest
from agent_rig import Events, hello

from pykvm.agent.outbox import LINE_WINDOW
from pykvm.agent.protocol import (
    MAX_PAYLOAD,
    OUTPUT_WINDOW,
    Frame,
    Kind,
)

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
