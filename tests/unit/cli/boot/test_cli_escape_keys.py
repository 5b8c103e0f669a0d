"""Escape keys among typed bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.boot.escape_keys import HELP, EscapeParser, Key


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (b"plain", [b"plain"]),
        (b"a\x01xb", [b"a", Key.QUIT, b"b"]),
        (b"\x01h", [Key.HELP]),
        (b"a\x01\x01b", [b"a\x01b"]),
        (b"\x01\x01x", [b"\x01x"]),
        (b"\x01q", [Key.UNKNOWN]),
        (b"\x01", []),
    ],
)
def test_escape_keys(typed, meant):
    assert EscapeParser().feed(typed) == meant


@given(st.lists(st.sampled_from([b"\x01", b"x", b"h", b"z", b"\xff"]), max_size=20))
def test_torn_escape_keys_mean_the_same(pieces):
    def flat(items):
        return [
            part
            for item in items
            for part in ([item] if isinstance(item, Key) else [bytes((byte,)) for byte in item])
        ]

    parser = EscapeParser()
    torn = [item for piece in pieces for item in parser.feed(piece)]
    assert flat(torn) == flat(EscapeParser().feed(b"".join(pieces)))


def test_help_is_for_a_raw_terminal():
    assert HELP.count("\n") == HELP.count("\r\n") > 3
