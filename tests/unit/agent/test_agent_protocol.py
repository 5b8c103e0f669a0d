"""The agent's protocol: the codec."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.agent.protocol import (
    MAX_COMMAND,
    MAX_PAYLOAD,
    Frame,
    FrameDecoder,
    Hello,
    Kind,
    ProtocolError,
    RunRequest,
    decode_hello,
    encode,
    encode_all,
    encode_wake,
)
from pykvm.errors import UsageError

HELLO = struct.pack("<HQ", 3, 0)


def test_frame_layout():
    assert encode(Kind.STDOUT, b"abc", 7) == b"\x02\x07\x03\x00abc"
    assert encode(Kind.POWEROFF, b"\1") == b"\x86\x00\x01\x00\x01"


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50), st.integers(0, 255))),
    st.integers(1, 30),
)
def test_frames_survive_any_cuts(items, step):
    data = b"".join(encode(*item) for item in items)
    decoder = FrameDecoder()
    frames = []
    for start in range(0, len(data), step):
        frames += decoder.feed(data[start : start + step])
    assert frames == [Frame(kind, id, payload) for kind, payload, id in items]


@pytest.mark.parametrize("header", [b"\x02\x01\x01\x80", b"\x02\x00\xff\xff"])
def test_a_bad_header_ends_the_conversation(header):
    decoder = FrameDecoder()
    hello = encode(Kind.HELLO, HELLO)
    frames = decoder.feed(hello + header + hello)
    assert frames[0] == Frame(Kind.HELLO, 0, HELLO)
    assert isinstance(frames[1], ProtocolError)
    assert len(frames) == 2
    assert decoder.feed(hello) == []


def test_the_largest_frame_passes():
    assert FrameDecoder().feed(encode(Kind.STDOUT, bytes(MAX_PAYLOAD), 1)) == [
        Frame(Kind.STDOUT, 1, bytes(MAX_PAYLOAD))
    ]


@given(st.binary(max_size=50), st.integers(0, 3))
def test_long_data_is_split(tail, wholes):
    data = bytes(wholes * MAX_PAYLOAD) + tail
    frames = FrameDecoder().feed(b"".join(encode_all(Kind.RUN_PART, data, 5, last=Kind.RUN)))
    assert b"".join(frame.payload for frame in frames) == data
    assert [frame.kind for frame in frames] == [Kind.RUN_PART] * (len(frames) - 1) + [Kind.RUN]
    assert {frame.id for frame in frames} == {5}


@given(st.binary(max_size=100), st.integers(1, (1 << 64) - 1), st.integers(1, 40))
def test_all_before_the_awaited_hello_is_dropped(rest, number, step):
    """The rest may be any part of any frames."""
    awaited = encode(Kind.HELLO, struct.pack("<HQ", 3, number))
    if awaited[4:] in rest:
        return
    after = encode(Kind.STDOUT, b"new", 1)
    data = rest + awaited + after
    decoder = FrameDecoder(number)
    frames = []
    for start in range(0, len(data), step):
        frames += decoder.feed(data[start : start + step])
    assert frames == [Frame(Kind.HELLO, 0, awaited[4:]), Frame(Kind.STDOUT, 1, b"new")]


def test_a_long_rest_takes_no_memory():
    decoder = FrameDecoder(5)
    for _ in range(100):
        assert decoder.feed(bytes(100_000)) == []
    assert len(decoder._buffer) < 100


def test_a_line_in_a_run_frame():
    assert RunRequest(b"echo hi").encode() == b"\x01" + bytes(4) + b"\1\0\0\0" + b"\0echo hi\0"


def test_all_parts_of_a_run_frame():
    request = RunRequest(
        [b"a", b""], env=[(b"N", b"v=w"), (b"M", b"")], cwd=b"/x", timeout=1.5, stdin=False
    )
    expected = b"\x02" + struct.pack("<IHH", 1500, 2, 2) + b"/x\0N=v=w\0M=\0a\0\0"
    assert request.encode() == expected


@pytest.mark.parametrize(
    ("seconds", "ms"), [(0.0, 0), (1e-9, 1), (0.5, 500), (1e12, (1 << 32) - 1), (-1.0, 0)]
)
def test_a_time_limit_is_never_lost(seconds, ms):
    assert struct.unpack_from("<I", RunRequest(b"x", timeout=seconds).encode(), 1) == (ms,)


@pytest.mark.parametrize(
    "request_",
    [
        RunRequest(b"x" * (MAX_COMMAND + 1)),
        RunRequest(b"a\0b"),
        RunRequest([b"a", b"\0"]),
        RunRequest([]),
        RunRequest([b""]),
        RunRequest([b"x"] * 5000),
        RunRequest([b"x" * 100_000] * 3),
        RunRequest(b"x", env=[(b"A=B", b"")]),
        RunRequest(b"x", env=[(b"", b"")]),
        RunRequest(b"x", env=[(b"A", b"\0")]),
        RunRequest(b"x", env=[(b"A", b"")] * 2000),
        RunRequest(b"x", cwd=b"/\0"),
    ],
)
def test_an_impossible_command_is_a_usage_error(request_):
    with pytest.raises(UsageError):
        request_.encode()


def test_the_longest_command_passes():
    assert len(RunRequest(b"x" * MAX_COMMAND).encode()) == 9 + 1 + MAX_COMMAND + 1


ENTROPY = bytes(range(32))


def test_the_frame_that_wakes_a_restored_guest():
    frame = encode_wake(0x1122334455667788, 0x0102030405060708, ENTROPY, new_disks=True)
    number = b"\x88\x77\x66\x55\x44\x33\x22\x11"
    now = b"\x08\x07\x06\x05\x04\x03\x02\x01"
    assert frame == b"\x88\x00\x31\x00" + number + b"\x07" + now + ENTROPY


@pytest.mark.parametrize(
    ("now", "entropy", "disks", "flags"),
    [(None, None, False, 0), (5, None, False, 1), (None, ENTROPY, False, 2), (None, None, True, 4)],
)
def test_each_part_of_waking_up_is_optional(now, entropy, disks, flags):
    frame = encode_wake(1, now, entropy, disks)
    assert (len(frame), frame[12]) == (4 + 49, flags)


@pytest.mark.parametrize("entropy", [b"", bytes(31), bytes(33)])
def test_entropy_of_another_length_is_a_bug(entropy):
    with pytest.raises(AssertionError):
        encode_wake(1, 1, entropy, new_disks=False)


def test_hello():
    assert decode_hello(HELLO) == Hello(3, 0, b"")
    assert decode_hello(struct.pack("<HQ", 3, 9) + b"no clock") == Hello(3, 9, b"no clock")
    assert decode_hello(b"\2\0") == Hello(2, 0, b"")
    assert decode_hello(b"\3\0") is None
    assert decode_hello(b"\3") is None
