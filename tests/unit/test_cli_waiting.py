"""The line that tells of a guest that boots."""

import os
import pty
from contextlib import suppress

import pytest
from patience import until

from pykvm.cli import waiting
from pykvm.cli.waiting import WaitingLine


@pytest.fixture
def terminal(monkeypatch):
    """What is shown on a terminal that takes standard error's place."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    monkeypatch.setattr(waiting, "STDERR", slave)
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0.01)
    yield master
    for fd in (master, slave):
        os.close(fd)


def read(master: int, seen: bytearray) -> bytearray:
    with suppress(BlockingIOError):
        seen += os.read(master, 4096)
    return seen


def test_the_line_counts_and_goes_when_the_guest_speaks(terminal):
    seen = bytearray()
    line = WaitingLine()
    line.start()
    until(lambda: read(terminal, seen).count(b"the guest is booting, 0 s") > 1)
    line.end()
    line.end()
    assert read(terminal, seen).endswith(b" s\r\x1b[K")
    assert b"\n" not in seen


def test_a_guest_that_speaks_at_once_needs_none(terminal, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 60)
    line = WaitingLine()
    line.start()
    line.end()
    assert not read(terminal, bytearray())


def test_a_terminal_that_takes_nothing_keeps_nobody_waiting(terminal):
    seen = bytearray()
    line = WaitingLine()
    line.start()
    until(lambda: read(terminal, seen))
    while waiting._show("x" * 4096):
        pass  # until the terminal's buffer is full, as after Ctrl-S
    line.end()
