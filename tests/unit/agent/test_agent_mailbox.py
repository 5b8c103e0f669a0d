"""The rings in guest RAM, and a client that speaks over them with a guest that may be hostile."""

import struct

import pytest
from agent_rig import Events
from hypothesis import given
from hypothesis import strategies as st

from pykvm.agent.client import AgentClient, AgentState
from pykvm.agent.mailbox import (
    AWAKE,
    MARK,
    PAGE,
    TO_GUEST_HEAD,
    TO_GUEST_TAIL,
    TO_HOST_HEAD,
    TO_HOST_TAIL,
    Rings,
)
from pykvm.agent.protocol import INPUT_WINDOW, Frame, FrameDecoder, Kind, RunRequest, encode
from pykvm.agent.requests import Exit

ENTROPY = bytes(range(32))


def hello(number=0):
    return encode(Kind.HELLO, struct.pack("<HQ", 3, number))


class FakeMemory:
    """A mailbox that is a bytearray."""

    def __init__(self, ring=2 * PAGE):
        self.size = PAGE + 2 * ring
        self.bytes = bytearray(self.size)

    def read(self, offset, length):
        assert 0 <= offset <= offset + length <= self.size
        return bytes(self.bytes[offset : offset + length])

    def write(self, offset, data):
        assert 0 <= offset <= offset + len(data) <= self.size
        self.bytes[offset : offset + len(data)] = data

    def word(self, offset):
        return struct.unpack_from("<Q", self.bytes, offset)[0]

    def set_word(self, offset, value):
        struct.pack_into("<Q", self.bytes, offset, value)


class GuestSide:
    """The guest's side of the rings, made by swapping the two."""

    def __init__(self, memory):
        self.memory = memory
        self.ring = (memory.size - PAGE) // 2 // PAGE * PAGE

    def begin(self):
        self.memory.set_word(0, MARK)

    def take(self):
        head, tail = self.memory.word(TO_GUEST_HEAD), self.memory.word(TO_GUEST_TAIL)
        data = bytes(self.memory.bytes[PAGE + at % self.ring] for at in range(tail, head))
        self.memory.set_word(TO_GUEST_TAIL, head)
        return data

    def put(self, data):
        head = self.memory.word(TO_HOST_HEAD)
        assert head - self.memory.word(TO_HOST_TAIL) + len(data) <= self.ring
        for at, byte in enumerate(data, head):
            self.memory.bytes[PAGE + self.ring + at % self.ring] = byte
        self.memory.set_word(TO_HOST_HEAD, head + len(data))


@given(st.lists(st.binary(max_size=PAGE), max_size=30), st.integers(0, (1 << 63)))
def test_what_goes_in_comes_out_in_both_directions(pieces, start):
    memory = FakeMemory()
    for word in (TO_GUEST_HEAD, TO_GUEST_TAIL, TO_HOST_HEAD, TO_HOST_TAIL):
        memory.set_word(word, start)
    rings, guest = Rings(memory), GuestSide(memory)
    for piece in pieces:
        assert rings.put(piece)
        assert guest.take() == piece
        guest.put(piece)
        assert rings.take() == piece
        assert rings.take() == b""


def test_a_full_ring_takes_nothing_until_the_guest_has_taken_something():
    memory = FakeMemory(ring=PAGE)
    rings, guest = Rings(memory), GuestSide(memory)
    assert rings.put(bytes(PAGE - 1))
    assert rings.put(b"ab") is False
    assert rings.put(b"a")
    assert rings.put(b"b") is False
    guest.take()
    assert rings.put(b"b")
    assert guest.take() == b"b"


@pytest.mark.parametrize("position", [1, 1 << 63, (1 << 64) - 1])
def test_a_position_ahead_of_the_host_makes_no_sense(position):
    memory = FakeMemory()
    rings = Rings(memory)
    memory.set_word(TO_GUEST_TAIL, position)
    assert rings.put(b"x") is None


@pytest.mark.parametrize("position", [2 * PAGE + 1, 1 << 63, (1 << 64) - 1])
def test_more_than_a_ring_of_bytes_makes_no_sense(position):
    memory = FakeMemory()
    rings = Rings(memory)
    memory.set_word(TO_HOST_HEAD, position)
    assert rings.take() is None


def test_the_hosts_words_in_memory_are_never_read_again():
    """The guest can write there."""
    memory = FakeMemory()
    rings, guest = Rings(memory), GuestSide(memory)
    rings.put(b"one")
    memory.set_word(TO_GUEST_HEAD, 77)
    memory.set_word(TO_HOST_TAIL, 77)
    memory.set_word(TO_HOST_HEAD, 0)
    assert rings.take() == b""
    rings.put(b"two")
    assert guest.take() == b"onetwo"


class Session:
    """A client, its mailbox and its line."""

    def __init__(self, memory=None, ring=64 * PAGE):
        self.memory = memory or FakeMemory(ring)
        self.guest = GuestSide(self.memory)
        self.line = bytearray()
        self.events = Events()
        self.client = AgentClient(self.line.extend, self.events, self.memory)

    def say(self, *frames):
        """The guest puts frames into the mailbox and rings. Then it sleeps."""
        self.memory.set_word(AWAKE, 1)
        self.guest.put(b"".join(frames))
        self.client.bell()
        self.memory.set_word(AWAKE, 0)

    def start(self):
        self.guest.begin()
        self.say(hello())

    def sent(self):
        """The frames in the mailbox, and the number of bytes on the line, since the last call."""
        frames = FrameDecoder().feed(self.guest.take())
        woken = len(self.line)
        self.line.clear()
        return frames, woken

    def run(self, command=b"true"):
        events = Events()
        return self.client.run(RunRequest(command), events), events


@pytest.fixture
def session():
    session = Session()
    session.start()
    return session


def test_a_command_over_the_mailbox(session):
    assert session.events.log == ["ready"]
    handle, events = session.run(b"echo hi")
    assert session.sent() == ([Frame(Kind.RUN, 1, RunRequest(b"echo hi").encode())], 1)
    handle.stdin(b"x")
    assert session.sent() == ([Frame(Kind.STDIN, 1, b"x")], 1)
    session.say(encode(Kind.STDOUT, b"hi\n", 1), encode(Kind.EXIT, bytes(3), 1))
    assert events.log == [("stdout", b"hi\n"), Exit(0, 0, False)]


def test_an_answer_within_the_bell_needs_no_byte_on_the_line(session):
    handle, _ = session.run(b"cat")
    assert not handle.stdin(bytes(10 * INPUT_WINDOW))
    session.sent()
    session.say(encode(Kind.CREDIT, struct.pack("<I", INPUT_WINDOW), 1))
    frames, woken = session.sent()
    assert sum(len(frame.payload) for frame in frames) == INPUT_WINDOW
    assert woken == 0


def test_a_guest_that_looks_unasked_is_not_woken(session):
    session.memory.set_word(AWAKE, 1)
    session.run(b"one")
    assert len(session.sent()[0]) == 1
    assert session.line == b""
    session.memory.set_word(AWAKE, 0)
    session.run(b"two")
    frames, woken = session.sent()
    assert [frame.kind for frame in frames] == [Kind.RUN]
    assert woken == 1


def test_what_has_no_room_goes_when_the_guest_rings():
    session = Session(ring=16 * PAGE)
    session.start()
    handles = [session.run(b"cat")[0] for _ in range(4)]
    for number, handle in enumerate(handles):
        handle.stdin(bytes([number]) * INPUT_WINDOW)
    arrived = {}
    for _ in range(20):
        frames, _ = session.sent()
        for frame in frames:
            if frame.kind == Kind.STDIN:
                arrived[frame.id] = arrived.get(frame.id, b"") + frame.payload
        session.client.bell()
    assert arrived == {number + 1: bytes([number]) * INPUT_WINDOW for number in range(4)}


def test_an_agent_without_a_mailbox_speaks_over_the_line():
    session = Session()
    _, events = session.run(b"true")
    session.client.received(hello())
    assert FrameDecoder().feed(bytes(session.line))[0].kind == Kind.RUN
    session.client.received(encode(Kind.EXIT, bytes(3), 1))
    session.client.bell()
    assert events.log == [Exit(0, 0, False)]


def test_an_agent_with_a_mailbox_is_not_heard_on_the_line(session):
    session.client.received(b"\1\2\xff\xff")
    assert session.events.log == ["ready"]


def test_a_restored_guest_is_woken_over_the_mailbox_where_the_positions_were():
    first = Session()
    first.start()
    first.run(b"one")
    first.sent()
    first.run(b"two")  # the guest has not taken this yet
    first.guest.put(encode(Kind.STDOUT, b"late", 1))
    second = Session(first.memory)
    _, events = second.run(b"three")
    second.client.wake(5, ENTROPY, True)
    frames, woken = second.sent()
    assert [frame.kind for frame in frames] == [Kind.RUN, Kind.WAKE, Kind.RUN]
    assert woken >= 1
    second.client.bell()
    number = int.from_bytes(frames[1].payload[:8], "little")
    second.say(encode(Kind.EXIT, bytes(3), 1), hello(number), encode(Kind.EXIT, b"\4\0\0", 1))
    assert second.events.log == ["ready"]
    assert events.log == [Exit(4, 0, False)]


def test_a_guest_that_was_saved_before_its_agent_ran_is_woken_when_it_runs():
    session = Session()
    _, events = session.run(b"true")
    session.client.wake(5, ENTROPY, False)
    assert [frame.kind for frame in FrameDecoder().feed(bytes(session.line))] == [Kind.WAKE]
    session.line.clear()
    session.start()
    ((wake,), _) = session.sent()
    assert wake.kind == Kind.WAKE
    session.say(hello(int.from_bytes(wake.payload[:8], "little")))
    assert [frame.kind for frame in session.sent()[0]] == [Kind.RUN]
    session.say(encode(Kind.EXIT, bytes(3), 1))
    assert (session.events.log, events.log) == (["ready"], [Exit(0, 0, False)])


@pytest.mark.parametrize(
    ("word", "value"), [(TO_HOST_HEAD, (1 << 64) - 1), (TO_GUEST_TAIL, 1 << 40)]
)
def test_positions_that_make_no_sense_end_the_conversation(session, word, value):
    _, events = session.run()
    session.memory.set_word(word, value)
    session.run()
    session.client.bell()
    failed = ("failed", "its position in the mailbox makes no sense")
    assert session.events.log == ["ready", failed]
    assert events.log == [failed]
    session.client.bell()
    assert session.client.state is AgentState.OVER


def test_a_guest_that_puts_more_there_all_the_time_does_not_hold_the_host(session):
    """As it can with a second CPU."""
    session.run()
    data = encode(Kind.STDERR, b"x", 1)
    asked = []
    read = session.memory.read

    def read_and_put(offset, length):
        asked.append(length)
        assert len(asked) < 10
        found = read(offset, length)
        session.memory.set_word(TO_HOST_TAIL, session.memory.word(TO_HOST_HEAD))
        session.guest.put(data)
        return found

    session.memory.read = read_and_put
    session.say(data)
    assert len(asked) == 1


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, (1 << 64) - 1)), max_size=20))
def test_any_words_in_the_mailbox_are_survived(writes):
    session = Session(ring=PAGE)
    session.start()
    handle, events = session.run()
    for place, value in writes:
        session.memory.set_word(8 * place, value)
        session.client.bell()
        handle.stdin(b"x" * 100)
    session.client.close("over")
    assert len([event for event in events.log if isinstance(event, Exit) or event != "room"]) == 1
