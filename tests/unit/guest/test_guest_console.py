"""The console of a guest."""

import re

import pytest
from fake_guest import BARE
from patience import ends, in_thread

import pykvm
from pykvm.guest import console as console_module
from pykvm.machine.outcome import Outcome


@pytest.fixture
def shown(fake):
    """A guest's console, and the function with which the guest prints."""
    one = fake(BARE)
    return one.guest.console, one.machine.console


def test_the_text_has_newlines_and_every_character(shown) -> None:
    console, prints = shown
    for byte in "a\r\nb\nä\r\n".encode():
        prints(bytes((byte,)))
    prints(b"\xff!")
    assert console.text == "a\nb\nä\n\ufffd!"


def test_each_text_is_found_once(shown) -> None:
    console, prints = shown
    prints(b"ready> one\r\nready> two\r\n")
    assert console.wait_for(r"ready> (\w+)").group(1) == "one"
    assert console.wait_for(re.compile(r"ready> (\w+)")).group(1) == "two"
    found = []
    thread = in_thread(lambda: found.append(console.wait_for("ready> $")))
    for byte in b"three\r\nready> ":
        prints(bytes((byte,)))
    assert ends(thread)
    assert found[0].string.startswith("ready> one\n")


def test_a_text_that_never_comes(shown) -> None:
    console, prints = shown
    prints(b"something\r\n\r\n")
    with pytest.raises(pykvm.GuestTimeout) as late:
        console.wait_for("else", timeout=0)
    assert str(late.value).startswith("the console has not shown /else/ within 0 s; ")
    assert late.value.console == "something"


def test_what_a_guest_printed_before_its_end_is_found(fake) -> None:
    one = fake(BARE)
    one.machine.console(b"the end")
    one.machine.finish(Outcome.reset())
    one.guest.wait()
    assert one.guest.console.wait_for("end")
    with pytest.raises(pykvm.GuestDied, match="the guest was reset, during the wait for /end/"):
        one.guest.console.wait_for("end")


def test_memory_is_bounded_and_the_last_text_stays(shown, monkeypatch) -> None:
    console, prints = shown
    monkeypatch.setattr(console_module, "KEPT", 100)
    monkeypatch.setattr(console_module, "_MOST_PIECES", 5)
    prints(b"first")
    assert console.wait_for("first")
    for number in range(100):
        prints(b"line %d\n" % number)
        assert len(console._kept) + len("".join(console._new)) < 300
    assert console.text.endswith("line 98\nline 99\n")
    assert console.wait_for("line 99")


def test_typing(fake) -> None:
    one = fake(BARE)
    one.guest.console.write("ä\n")
    one.guest.console.write(b"\x03")
    assert one.machine.typed == "ä\n\x03".encode()
    with pytest.raises(pykvm.UsageError, match=r"^data cannot be 3"):
        one.guest.console.write(3)


@pytest.mark.parametrize("wrong", ["(", 3, None, b"bytes", re.compile(b"bytes")])
def test_what_is_no_pattern(shown, wrong) -> None:
    with pytest.raises(pykvm.UsageError, match=r"^pattern cannot be "):
        shown[0].wait_for(wrong)


def test_the_end_in_a_message_is_printable_and_short(shown) -> None:
    console, prints = shown
    prints(b"".join(b"\x1b[1mline %d\r\n" % number for number in range(1000)))
    lines = console.tail().splitlines()
    assert len(lines) == 20
    assert lines[-1] == "\\x1b[1mline 999"
