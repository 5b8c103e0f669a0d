"""The terminal is restored on every way out, and only the foreground job changes it."""

import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest
from patience import PATIENCE, until

from pykvm.cli.boot.terminal import RawTerminal

# What the tests run on a terminal of its own. "shell" is a shell with one job.
PROGRAM = """
import fcntl, os, signal, sys, termios, time

mode = sys.argv[1]
def say(word):
    os.write(1, word.encode() + b"\\n")

def job():
    from pykvm.cli.boot.streams import InputPump
    from pykvm.cli.boot.terminal import RawTerminal
    def end(number, frame):
        sys.exit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    def typed(data):
        say("typed " + data.hex())
        return True
    with RawTerminal(0) as terminal:
        with InputPump(0, typed, lambda: say("gone"), on_key=lambda key: say(key.name),
                       terminal=terminal):
            say("ready")
            if mode == "exception":
                raise RuntimeError("on purpose")
            while mode != "normal":
                time.sleep(0.05)

def shell():
    control = int(sys.argv[2])
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        if mode == "foreground":
            os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        job()
        os._exit(0)
    say(f"pid {pid}")
    while True:
        what = os.read(control, 1)
        if what == b"w":
            status = os.waitpid(pid, os.WUNTRACED)[1]
            os.tcsetpgrp(0, os.getpgrp())
            say("stopped" if os.WIFSTOPPED(status) else "ended")
        elif what == b"f":
            os.tcsetpgrp(0, pid)
            say("foreground")
        elif what == b"c":
            os.kill(pid, signal.SIGCONT)
            say("continued")
        else:
            break

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
shell() if mode in ("foreground", "background") else job()
"""


class Session:
    """PROGRAM on a pseudoterminal, with its standard output in a pipe."""

    def __init__(self, mode):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.control = os.pipe()
        theirs = self.control[0]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, str(theirs)],
            stdin=self.slave,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[theirs],
            stderr=subprocess.DEVNULL if mode == "exception" else None,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        for fd in (self.master, self.slave, *self.control):
            if fd >= 0:
                os.close(fd)

    def expect(self, word):
        line = self.process.stdout.readline().decode().strip()
        assert line.split(" ")[0] == word, f"{line!r} instead of {word!r}"
        return line.partition(" ")[2]

    def shell(self, command):
        os.write(self.control[1], command)

    def type(self, data):
        os.write(self.master, data)

    @property
    def modes(self):
        return termios.tcgetattr(self.slave)

    @property
    def raw(self):
        return not self.modes[3] & termios.ICANON

    @property
    def restored(self):
        return self.modes == self.before

    def hang_up(self):
        """Close the terminal; a process with it as the controlling one gets SIGHUP."""
        os.close(self.master)
        self.master = -1


def test_raw_means_every_byte_unchanged_both_ways():
    with Session("wait") as session:
        session.expect("ready")
        iflag, oflag, cflag, lflag = session.modes[:4]
        assert not iflag & (termios.ICRNL | termios.IXON)
        assert not oflag & termios.OPOST
        assert cflag & termios.CS8
        assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)
        session.type(b"\x03\x1a\x11\r")
        assert session.expect("typed") == "031a110d"


@pytest.mark.parametrize("mode", ["normal", "exception"])
def test_the_terminal_is_restored_at_the_end(mode):
    with Session(mode) as session:
        session.expect("ready")
        assert session.process.wait(PATIENCE) == (mode == "exception")
        assert session.restored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_terminal_is_restored_after_a_signal(number):
    with Session("wait") as session:
        session.expect("ready")
        assert session.raw
        session.process.send_signal(number)
        assert session.process.wait(PATIENCE) == 128 + number
        assert session.restored


def test_a_closed_terminal_ends_the_run_without_a_crash():
    with Session("wait") as session:
        session.expect("ready")
        session.hang_up()
        assert session.process.wait(PATIENCE) == 128 + signal.SIGHUP


def test_stop_and_continue():
    with Session("foreground") as session:
        job = int(session.expect("pid"))
        session.expect("ready")
        assert session.raw
        os.kill(job, signal.SIGTSTP)
        session.shell(b"w")
        session.expect("stopped")
        assert session.restored
        session.shell(b"f")
        session.expect("foreground")
        session.shell(b"c")
        session.expect("continued")
        until(lambda: session.raw)
        session.type(b"\x01x")
        session.expect("QUIT")
        os.kill(job, signal.SIGTERM)
        session.shell(b"w")
        session.expect("ended")
        assert session.restored


def test_a_stop_without_a_shell_leaves_the_terminal_raw():
    with Session("wait") as session:
        session.expect("ready")
        session.process.send_signal(signal.SIGTSTP)
        session.process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        until(lambda: session.raw)
        session.type(b"k")
        assert session.expect("typed") == "6b"


def test_a_terminal_that_the_shell_changed_meanwhile_is_raw_again_after_continue():
    with Session("foreground") as session:
        job = int(session.expect("pid"))
        session.expect("ready")
        os.kill(job, signal.SIGSTOP)
        session.shell(b"w")
        session.expect("stopped")
        termios.tcsetattr(session.slave, termios.TCSANOW, session.before)
        session.shell(b"f")
        session.expect("foreground")
        session.shell(b"c")
        session.expect("continued")
        until(lambda: session.raw)


@pytest.mark.parametrize("typed", [b"", b"for the shell\n"])
def test_a_job_in_the_background_leaves_the_terminal_alone_until_it_comes_forward(typed):
    with Session("background") as session:
        job = int(session.expect("pid"))
        session.expect("ready")
        session.type(typed)
        time.sleep(0.1)
        assert session.restored
        session.shell(b"f")
        session.expect("foreground")
        until(lambda: session.raw)
        os.kill(job, signal.SIGTERM)
        session.shell(b"w")
        while (line := session.process.stdout.readline().strip()) != b"ended":
            assert line.startswith(b"typed")
        assert session.restored


def test_raw_terminal_does_nothing_without_a_terminal():
    before = signal.getsignal(signal.SIGTSTP)
    read, write = os.pipe()
    try:
        with RawTerminal(read) as terminal:
            assert not terminal.is_terminal
            terminal.resume()
            assert not terminal.raw
            assert signal.getsignal(signal.SIGTSTP) == before
    finally:
        os.close(read)
        os.close(write)
    with RawTerminal(read) as terminal:
        assert not terminal.is_terminal


def test_handlers_are_given_back():
    numbers = (signal.SIGTSTP, signal.SIGCONT, signal.SIGTTIN, signal.SIGTTOU)
    before = [signal.getsignal(number) for number in numbers]
    master, slave = pty.openpty()
    try:
        with RawTerminal(slave) as terminal:
            assert terminal.raw
            assert signal.getsignal(signal.SIGTTIN) == signal.SIG_IGN
        assert [signal.getsignal(number) for number in numbers] == before
    finally:
        os.close(master)
        os.close(slave)
