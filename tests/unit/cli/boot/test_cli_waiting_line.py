"""The line that says that the guest is booting."""

import os
import pty
import threading
from contextlib import suppress

import pytest
from patience import ends, in_thread, until

from pykvm.cli.boot import waiting_line
from pykvm.cli.boot.waiting_line import WaitingLine
from pykvm.errors import HostError


@pytest.fixture
def terminal(monkeypatch):
    """What is shown on a terminal that takes standard error's place."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    monkeypatch.setattr(waiting_line, "STDERR", slave)
    monkeypatch.setattr(waiting_line, "PATIENCE_SECONDS", 0.01)
    yield master
    for fd in (master, slave):
        os.close(fd)


def read(master: int, seen: bytearray) -> bytearray:
    with suppress(BlockingIOError):
        seen += os.read(master, 4096)
    return seen


def test_the_line_counts_and_disappears_at_the_guests_first_output(terminal):
    seen = bytearray()
    line = WaitingLine()
    line.start()
    until(lambda: read(terminal, seen).count(b"the guest is booting, 0 s") > 1)
    line.end()
    line.end()
    assert read(terminal, seen).endswith(b" s\r\x1b[K")
    assert b"\n" not in seen


def test_a_guest_that_speaks_at_once_needs_none(terminal, monkeypatch):
    monkeypatch.setattr(waiting_line, "PATIENCE_SECONDS", 60)
    line = WaitingLine()
    line.start()
    line.end()
    assert not read(terminal, bytearray())


def test_a_terminal_that_takes_nothing_keeps_nobody_waiting(terminal):
    seen = bytearray()
    line = WaitingLine()
    line.start()
    until(lambda: read(terminal, seen))
    while waiting_line._show("x" * 4096):
        pass  # until the terminal's buffer is full, as after Ctrl-S
    line.end()


def test_output_during_the_lines_end_is_not_erased(terminal, monkeypatch):
    """A vCPU's thread prints while the thread of events ends the line."""
    line = WaitingLine()
    line._shown = True
    done = []
    show = waiting_line._show

    def erase(text: str) -> bool:
        other = in_thread(lambda: (line.end(), done.append("the guest's words")))
        other.join(0.1)  # it is to wait for this, and there is no way to see that it does
        threads.append(other)
        done.append("erased")
        return show(text)

    threads = []
    monkeypatch.setattr(waiting_line, "_show", erase)
    line.end()
    assert all(map(ends, threads))
    assert done == ["erased", "the guest's words"]


def test_a_host_without_a_thread_for_the_line_is_an_error(terminal, monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(HostError, match="no thread for the line that shows the boot"):
        WaitingLine().start()
