"""The terminal's size reaches the guest's agent."""

import os
import pty
import signal
import struct
import termios
import threading

import pytest

from pykvm.agent.client import AgentClient
from pykvm.agent.protocol import Kind, encode
from pykvm.cli.boot.window_size import WindowSize

HELLO = encode(Kind.HELLO, struct.pack("<HQ", 3, 0))


def resize(rows: int, columns: int) -> bytes:
    return encode(Kind.RESIZE, struct.pack("<HH", rows, columns))


@pytest.fixture
def terminal():
    fds = pty.openpty()
    termios.tcsetwinsize(fds[1], (24, 80))
    yield fds[1]
    for fd in fds:
        os.close(fd)


class Agent:
    """The guest's side: what was sent there, and a way to answer."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.says = lambda data: None

    def connect(self, window: WindowSize) -> AgentClient:
        client = AgentClient(self.sent.append, window)
        self.says = client.received
        return client


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_only_changes_of_the_size_go_to_a_ready_agent(terminal, agent):
    window = WindowSize(terminal, (24, 80), agent.connect)
    termios.tcsetwinsize(terminal, (50, 132))
    window.look()
    assert not agent.sent
    agent.says(HELLO[:3])
    agent.says(HELLO[3:])
    window.look()
    window.look()
    assert agent.sent == [resize(50, 132)]


def test_only_an_agent_gets_the_size(terminal, agent):
    window = WindowSize(terminal, None, agent.connect)
    for data in (b"\1\0\xff\xff: ", HELLO):
        agent.says(data)
    window.look()
    assert not agent.sent


def test_the_agent_gets_the_size_as_soon_as_it_is_ready(terminal, agent):
    window = WindowSize(terminal, None, agent.connect)
    with window.watched(window.look):
        agent.says(HELLO)
    assert agent.sent == [resize(24, 80)]


def test_a_change_is_noticed(terminal, agent):
    woken = []
    before = signal.getsignal(signal.SIGWINCH)
    with WindowSize(terminal, None, agent.connect).watched(lambda: woken.append(1)):
        signal.raise_signal(signal.SIGWINCH)
    assert woken == [1]
    assert signal.getsignal(signal.SIGWINCH) is before


def test_a_thread_other_than_the_main_one_may_run_the_session(terminal, agent):
    def session() -> None:
        with WindowSize(terminal, None, agent.connect).watched(lambda: None):
            done.append(1)

    done = []
    thread = threading.Thread(target=session)
    thread.start()
    thread.join()
    assert done == [1]
