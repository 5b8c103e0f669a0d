"""The mailbox in guest RAM."""

import pytest

from pykvm.machine.mailbox import MAILBOX_SIZE, RamMailbox
from pykvm.memory.ram import Ram

START = 1 << 20


@pytest.fixture
def ram() -> Ram:
    return Ram.flat(2 << 20)


@pytest.fixture
def mailbox(ram: Ram) -> RamMailbox:
    return RamMailbox(ram, START, lambda ring: None)


def test_bytes_and_words_are_those_of_the_guest(ram, mailbox):
    mailbox.write(MAILBOX_SIZE - 3, b"abc")
    mailbox.set_word(8, 0x0102030405060708)
    assert ram.read(START + MAILBOX_SIZE - 3, 3) == b"abc"
    assert ram.read(START + 8, 8) == bytes(range(8, 0, -1))
    assert mailbox.read(8, 2) == b"\x08\x07"
    assert mailbox.word(8) == 0x0102030405060708


def test_nothing_beyond_the_mailbox_is_reached(mailbox):
    with pytest.raises(AssertionError):
        mailbox.read(MAILBOX_SIZE - 1, 2)
    with pytest.raises(AssertionError):
        mailbox.write(-1, b"x")
    with pytest.raises(AssertionError):
        mailbox.word(MAILBOX_SIZE)
