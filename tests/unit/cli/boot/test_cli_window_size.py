"""The terminal's size reaches the guest's agent."""

import os
import pty
import signal
import struct
import termios
import threading

import pytest

from pykvm.agent.protocol import Kind, encode
from pykvm.cli.boot.window_size import WindowSize

HELLO = encode(Kind.HELLO, b"\2\0")


def resize(rows: int, columns: int) -> bytes:
    return encode(Kind.RESIZE, struct.pack("<HH", rows, columns))


@pytest.fixture
def terminal():
    fds = pty.openpty()
    termios.tcsetwinsize(fds[1], (24, 80))
    yield fds[1]
    for fd in fds:
        os.close(fd)


@pytest.fixture
def sent() -> list[bytes]:
    return []


def test_only_changes_of_the_size_go_to_a_ready_agent(terminal, sent):
    window = WindowSize(terminal, (24, 80), sent.append)
    termios.tcsetwinsize(terminal, (50, 132))
    window.look()
    assert not sent
    window.received(HELLO[:3])
    window.received(HELLO[3:])
    window.look()
    window.look()
    assert sent == [resize(50, 132)]


def test_only_an_agent_gets_the_size(terminal, sent):
    window = WindowSize(terminal, None, sent.append)
    for data in (b"login: ", HELLO):
        window.received(data)
    window.look()
    assert not sent


def test_the_agent_gets_the_size_as_soon_as_it_is_ready(terminal, sent):
    window = WindowSize(terminal, None, sent.append)
    with window.watched(window.look):
        window.received(HELLO)
    assert sent == [resize(24, 80)]


def test_a_change_is_noticed(terminal, sent):
    woken = []
    before = signal.getsignal(signal.SIGWINCH)
    with WindowSize(terminal, None, sent.append).watched(lambda: woken.append(1)):
        signal.raise_signal(signal.SIGWINCH)
    assert woken == [1]
    assert signal.getsignal(signal.SIGWINCH) is before


def test_a_thread_other_than_the_main_one_may_run_the_session(terminal, sent):
    def session() -> None:
        with WindowSize(terminal, None, sent.append).watched(lambda: None):
            done.append(1)

    done = []
    thread = threading.Thread(target=session)
    thread.start()
    thread.join()
    assert done == [1]
