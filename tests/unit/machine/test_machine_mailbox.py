"""The mailbox in guest RAM."""

import threading

import pytest
from patience import patience

from pykvm.machine.mailbox import MAILBOX_SIZE, Mailbox, RamMailbox
from pykvm.memory.ram import Ram

START = 1 << 20


@pytest.fixture
def ram() -> Ram:
    return Ram.flat(2 << 20)


@pytest.fixture
def whole(ram: Ram) -> Mailbox:
    return Mailbox(ram, START)


@pytest.fixture
def mailbox(whole: Mailbox) -> RamMailbox:
    return whole.open()


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


def test_only_the_last_client_writes(whole, ram):
    first = whole.open()
    first.write(100, b"first")
    second = whole.open()
    first.write(100, b"x")
    first.set_word(8, 7)
    assert ram.read(START + 100, 5) == b"first"
    assert second.word(8) == 0
    second.write(100, b"later")
    assert ram.read(START + 100, 5) == b"later"


def test_nobody_writes_while_memory_is_copied(whole, mailbox):
    written = threading.Event()

    def write():
        mailbox.write(100, b"new")
        written.set()

    thread = threading.Thread(target=write)
    with whole.held():
        thread.start()
        assert not written.wait(0.05)
        assert mailbox.read(100, 3) == bytes(3)
    assert written.wait(patience())
    thread.join()
    assert mailbox.read(100, 3) == b"new"


def test_memory_that_was_put_back_makes_a_clients_positions_void(whole, mailbox):
    with whole.held(put_back=True):
        pass
    mailbox.write(100, b"old")
    mailbox.set_word(8, 7)
    assert mailbox.read(100, 3) == bytes(3)
    assert mailbox.word(8) == 0
    whole.open().set_word(8, 5)
    assert mailbox.word(8) == 5


def test_the_bell_reaches_the_client_that_is_connected(whole):
    rung = []
    whole.rung()
    whole.connect(lambda: rung.append(1))
    whole.rung()
    assert rung == [1]
