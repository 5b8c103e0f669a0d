"""Names that are not UTF-8: JSON stays valid, and has the exact name of each file."""

import base64
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import shown
from pykvm.names import json_text, name_fields, names_fields

ODD = os.fsdecode(b"d\xff\\xff\n")


def exact(fields: dict[str, str]) -> bytes:
    """The name that a reader of ``fields`` finds."""
    if "path_base64" in fields:
        return base64.b64decode(fields["path_base64"])
    return fields["path"].encode()


@given(st.binary())
def test_every_name_survives_json(name: bytes) -> None:
    written = json_text(name_fields("path", os.fsdecode(name)))
    assert exact(json.loads(written)) == name
    json.loads(written)["path"].encode()  # no surrogates are left


def test_a_name_that_is_utf8_is_unchanged() -> None:
    assert name_fields("path", "ä\\xff\n📀") == {"path": "ä\\xff\n📀"}
    assert names_fields("disks", ["ä", "b"]) == {"disks": ["ä", "b"]}


def test_names_in_a_list_keep_their_places() -> None:
    made = names_fields("disks", ["a", ODD])
    assert made["disks"] == ["a", "d\\xff\\xff\n"]
    assert [base64.b64decode(name) for name in made["disks_base64"]] == [b"a", os.fsencode(ODD)]


def test_sentences_and_keys_become_utf8_too() -> None:
    made = json.loads(json_text({"reason": f"no {ODD}", "📀": [1, None, (ODD,)], ODD: True}))
    assert made == {
        "reason": "no d\\xff\\xff\n",
        "📀": [1, None, ["d\\xff\\xff\n"]],
        "d\\xff\\xff\n": True,
    }


@given(st.text() | st.binary().map(os.fsdecode))
def test_shown_text_is_one_line_and_does_nothing_to_a_terminal(text: str) -> None:
    assert shown(text).isprintable()
    if text.isprintable():
        assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (os.fsdecode(b"a\xff"), "a\\xff"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x85", "\\u0085"),
        ("\n", "\\n"),
    ],
)
def test_unprintable_characters_are_escaped(text: str, seen: str) -> None:
    assert shown(text) == seen


def test_long_text_is_cut() -> None:
    assert shown("abcd", most=4) == "abcd"
    assert shown("abcde\n", most=4) == "abcd…"


def test_chosen_characters_are_kept() -> None:
    assert shown("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"
