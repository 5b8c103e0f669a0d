"""The shell of the Linux guest on a terminal, as in ``make boot``."""

import signal
import termios

import pytest
from patience import linux_patience
from run_on_terminal import Terminal

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

PROMPT = b"# "


@pytest.fixture
def terminal():
    made = Terminal("guest", size=(37, 123))
    yield made
    made.close()


def test_a_session_at_the_shell(terminal):
    """Prompt, echo, size, Ctrl-C, and an end by ``exit``."""
    terminal.expect(PROMPT, linux_patience())
    terminal.type(b"echo $((6*7)); stty size\r")
    terminal.expect(b"\r\n42\r\n37 123\r\n", linux_patience())
    terminal.expect(PROMPT, linux_patience())
    terminal.type(b"echo asleep; sleep 1000\r")
    # Until the shell has given the terminal to its command, Ctrl-C is a key like others.
    terminal.expect(b"\r\nasleep\r\n", linux_patience())
    terminal.type(b"\x03")
    terminal.expect(PROMPT, linux_patience())
    # An escaped Ctrl-a goes to the shell's line editor: to the line's begin.
    terminal.type(b"no\x01\x01echo \r")
    terminal.expect(b"\r\nno\r\n", linux_patience())
    # Unlike a script, a shell on a terminal does not pass on its last command's status.
    terminal.type(b"exit 3\r")
    assert terminal.finish(linux_patience()) == 0


def test_full_screen_programs_see_the_size_of_the_terminal(terminal):
    """Such programs see each change of the size, and get keys without Enter."""
    terminal.expect(PROMPT, linux_patience())
    termios.tcsetwinsize(terminal.slave, (50, 132))
    # The kernel sends this signal only for a controlling terminal, which the test's is not.
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.type(b"until stty size | grep 132; do sleep 1; done\r")
    terminal.expect(b"50 132\r\n", linux_patience())
    terminal.expect(PROMPT, linux_patience())
    terminal.type(b"top\r")
    terminal.expect(b"COMMAND", linux_patience())
    terminal.type(b"q")
    terminal.expect(PROMPT, linux_patience())
    terminal.type(b"seq 1000 | less\r")
    terminal.expect(b"\n\x1b[K49\r", linux_patience())
    terminal.type(b"q")
    terminal.expect(PROMPT, linux_patience())
    terminal.type(b"exit\r")
    assert terminal.finish() == 0


def test_quit(terminal):
    terminal.expect(PROMPT, linux_patience())
    terminal.type(b"\x01x")
    assert terminal.finish(linux_patience()) == 0
