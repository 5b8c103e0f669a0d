"""QMP without a socket: bytes in, commands and answers out.

The result does not depend on how the bytes are cut. After any input, a command
on a separate line is understood.
"""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pykvm.monitor.protocol import Command, Conversation, QmpError
from pykvm.monitor.stream import MAX_MESSAGE, JsonStream, Malformed, Value

VERSION = {"qemu": {"major": 0, "minor": 1, "micro": 2}, "package": "p"}


def values(*pieces: bytes) -> list[object]:
    """The values in ``pieces``, with the class Malformed for each malformed message."""
    stream = JsonStream()
    items = [item for piece in pieces for item in stream.feed(piece)]
    return [item.value if isinstance(item, Value) else Malformed for item in items]


# -- JSON out of bytes ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", []),
        (b" \r\n\t", []),
        (b"{}", [{}]),
        (b"{}{}", [{}, {}]),
        (b'{"a": [1, {"b": "}"}]}', [{"a": [1, {"b": "}"}]}]),
        (b'{"a": "\\"{\\\\"}{}', [{"a": '"{\\'}, {}]),
        (b'{\n"a":\n1,\n"b"\n:\n[\n1\n,\n2\n]\n}\n', [{"a": 1, "b": [1, 2]}]),
        ('{"ä": "→"}'.encode(), [{"ä": "→"}]),
        (b"[1]", [[1]]),
        (b'{"a"', []),
        (b'{"a": "', []),
        # Malformed messages, and the next good one.
        (b"hello\n{}", [Malformed, {}]),
        (b"hello {}", [Malformed, {}]),
        (b"}\n{}", [Malformed, {}]),
        (b"]}{}", [Malformed, {}]),
        (b"42\n{}", [Malformed, {}]),
        (b'"{}"\n{}', [Malformed, {}, Malformed, {}]),
        (b'{"a": }{}', [Malformed, {}]),
        (b"{]{}", [Malformed, {}]),
        (b"{'a': 1}{}", [Malformed, {}]),
        (b'{"a": 1,}{}', [Malformed, {}]),
        (b'{"a": NaN}{}', [Malformed, {}]),
        (b'{"a": Infinity}{}', [Malformed, {}]),
        (b'{"a": 1e999}{}', [Malformed, {}]),
        (b'{"a": "\xff"}{}', [Malformed, {}]),
        (b'{"a": "x\n{}', [Malformed, {}]),
        (b'{"a": "x\n{}\n', [Malformed, {}]),
        (b'{"a": 1\n{}\n', [Malformed, {}]),
        (b'{"a": 1\n{"b": "c"}\n', [Malformed, {"b": "c"}]),
        (b'{"a": tru\n{}\n', [Malformed, {}]),
        (b'{"a": NaN\n{}\n', [Malformed, {}]),
        (b"[" * 30000 + b"]" * 30000 + b"{}", [Malformed, {}]),
        (b"1" * 5000 + b"\n{}", [Malformed, {}]),
        (b'{"a": ' + b"1" * 5000 + b"}{}", [Malformed, {}]),
    ],
)
def test_messages_are_found_and_malformed_ones_skipped(text: bytes, expected: list[object]):
    assert values(text) == expected


def test_a_message_that_is_too_long_is_dropped_to_the_end_of_its_line():
    long = b'{"a": "' + b"x" * MAX_MESSAGE + b'"}'
    assert values(long + b"\n{}") == [Malformed, {}]
    long = b'{"a": "' + b"x" * 2 * MAX_MESSAGE + b'"}'
    pieces = [long[i : i + 999] for i in range(0, len(long), 999)]
    assert values(*pieces, b" {}\n", b"{}") == [Malformed, {}]
    assert values(b"x" * MAX_MESSAGE * 3, b"y\n{}") == [Malformed, {}]


def test_the_memory_used_is_bounded():
    stream = JsonStream()
    for _ in range(100):
        stream.feed(b'{"a": "' + b"x" * 10000)
        assert len(stream._buffer) <= MAX_MESSAGE + 10100


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
MESSAGES = st.lists(
    st.tuples(
        st.dictionaries(st.text(), ANY_JSON, max_size=4),
        st.sampled_from([None, 1]),
        st.booleans(),
        st.sampled_from([b"", b"\n", b" ", b"\r\n"]),
    ),
    max_size=5,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(bounds)]


@given(MESSAGES, st.lists(st.integers(0), max_size=10))
@example([({"a": [None, {"b": {}}]}, 1, False, b"")], [18])
def test_any_messages_are_found_in_any_pieces(messages, places):
    encoded = b"".join(
        json.dumps(value, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass") + gap
        for value, indent, ascii_, gap in messages
    )
    assert values(*cut(encoded, places)) == [value for value, *_ in messages]


SPREAD = [
    {"a": [None, {"000": None}, {}]},
    {"\U00010000": [{"b": {"c": [[], [{}], [{"d": ""}]]}}, {}]},
    {"a": [True, False, None, 324, -2.76e16, "\x1f\\", '{"}'], "b": {}},
]


@pytest.mark.parametrize("indent", [0, 1, "\t"])
@pytest.mark.parametrize("message", SPREAD)
def test_a_message_over_several_lines_may_be_cut_at_any_byte(message, indent):
    one = json.dumps(message, indent=indent, ensure_ascii=False).encode()
    two = one + one
    for place in range(len(two)):
        assert values(two[:place], two[place:]) == [message, message], two[:place]


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":\n ' + b"1" * 5000 + b".5e-4990}",
        b'{"a":\n ' + b"1" * 400 + b".5e-300}",
    ],
)
def test_a_number_is_judged_when_it_is_complete(text):
    number = float(text[text.index(b"1") : -1])
    for place in range(len(text)):
        assert values(text[:place], text[place:]) == [{"a": number}], text[:place]


NOISE = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"\n", b" ", b"1", b"tru", b"\xff", b"a"]
    ),
    max_size=30,
).map(b"".join)


@given(NOISE, st.lists(st.integers(0), max_size=5))
def test_after_any_noise_a_command_is_understood(noise, places):
    """By the second line at the latest: an open message may have swallowed the first."""
    command = b'{"execute": "query-status"}\n'
    pieces = cut(noise, places)
    assert values(*pieces, b"\n", command, command, command)[-1] == {"execute": "query-status"}


@pytest.mark.parametrize("data", [b"[]i", b"\n\\1", b"{\n{\\", b'["a"\n{"'])
def test_a_message_without_an_end_is_not_judged_yet(data):
    whole, pieces = JsonStream(), JsonStream()
    assert whole.feed(data) == [item for byte in data for item in pieces.feed(bytes([byte]))]


@given(NOISE, st.lists(st.integers(0), max_size=5))
@example(b"]{}", [1])
@example(b'{"\xff"\n{}}', [5])
def test_any_noise_gives_the_same_in_any_pieces(noise, places):
    """The empty line at the end decides whether the line before it was a message."""
    lines = noise + b"\n\n"
    assert values(*cut(lines, places)) == values(lines)


# -- the conversation -------------------------------------------------------------


def talk(*messages: object, negotiated: bool = True) -> list[object]:
    """The answers, parsed, and the commands."""
    conversation = Conversation(VERSION)
    if negotiated:
        conversation.receive(b'{"execute": "qmp_capabilities"}')
    found = []
    for message in messages:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        found += conversation.receive(data)
    return [item if isinstance(item, Command) else json.loads(item) for item in found]


def error_of(answer: dict) -> str:
    assert set(answer["error"]) == {"class", "desc"}
    return answer["error"]["class"]


def test_the_greeting_has_the_version():
    greeting = Conversation(VERSION).greeting
    assert greeting.endswith(b"\r\n")
    assert json.loads(greeting) == {"QMP": {"version": VERSION, "capabilities": []}}


def test_negotiation_comes_first_and_once():
    first, done, again = talk(
        {"execute": "query-status"},
        {"execute": "qmp_capabilities", "id": 7},
        {"execute": "qmp_capabilities"},
        negotiated=False,
    )
    assert error_of(first) == "CommandNotFound"
    assert done == {"return": {}, "id": 7}
    assert error_of(again) == "CommandNotFound"


@pytest.mark.parametrize("enable", [["oob"], "oob", None, 1])
def test_enabling_a_capability_is_an_error(enable):
    answer, status = talk(
        {"execute": "qmp_capabilities", "arguments": {"enable": enable}},
        {"execute": "query-status"},
        negotiated=False,
    )
    assert error_of(answer) == "GenericError"
    assert error_of(status) == "CommandNotFound"


def test_an_empty_list_of_capabilities_is_accepted():
    message = {"execute": "qmp_capabilities", "arguments": {"enable": []}}
    assert talk(message, negotiated=False) == [{"return": {}}]


@pytest.mark.parametrize(
    "message",
    [
        [],
        [1],
        {},
        {"id": 1},
        {"execute": 1},
        {"execute": None},
        {"execute": "stop", "arguments": []},
        {"execute": "stop", "arguments": None},
        {"execute": "stop", "control": {}},
        {"exec-oob": "stop"},
        b"{]",
        b"nonsense\n",
    ],
)
def test_a_mistake_is_answered_and_the_next_command_works(message):
    answer, command = talk(message, {"execute": "stop", "id": 2})
    assert error_of(answer) == "GenericError"
    if isinstance(message, dict):
        assert answer.get("id") == message.get("id")
    assert command == Command("stop", {}, {"id": 2})


@given(ANY_JSON)
def test_the_answer_has_the_id_unchanged(id_):
    (command,) = talk({"execute": "stop", "id": id_})
    assert json.loads(command.success([])) == {"return": [], "id": id_}
    failed = json.loads(command.failure(QmpError("why")))
    assert failed == {"error": {"class": "GenericError", "desc": "why"}, "id": id_}
    (answer,) = talk({"execute": 1, "id": id_})
    assert answer["id"] == id_


def test_an_answer_to_a_command_without_an_id_has_none():
    (command,) = talk({"execute": "stop"})
    assert json.loads(command.success({})) == {"return": {}}


def test_answers_are_one_line_of_ascii():
    (command,) = talk({"execute": "stop", "id": "ä\n→"})
    answer = command.success({"text": "\ud800"})
    assert answer.isascii()
    assert answer.count(b"\n") == 1
