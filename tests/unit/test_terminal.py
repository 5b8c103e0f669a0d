"""The terminal comes back on every way out; keys, input and output go where they should."""

import contextlib
import errno
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.keys import HELP, EscapeParser, Key
from pykvm.cli.streams import InputPump, OutputWriter, ScriptInput, output_failure
from pykvm.cli.terminal import RawTerminal
from pykvm.platform.outcome import OutcomeKind

PATIENCE = 20.0

# What the tests run on a terminal of its own. "shell" is a shell with one job.
PROGRAM = """
import fcntl, os, signal, sys, termios, time

mode = sys.argv[1]
def say(word):
    os.write(1, word.encode() + b"\\n")

def job():
    from pykvm.cli.streams import InputPump
    from pykvm.cli.terminal import RawTerminal
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


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


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


def test_a_closed_terminal_ends_it_without_a_crash():
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
        wait_until(lambda: session.raw)
        session.type(b"\x01x")
        session.expect("QUIT")
        os.kill(job, signal.SIGTERM)
        session.shell(b"w")
        session.expect("ended")
        assert session.restored


def test_stop_with_no_shell_to_continue_goes_on_raw():
    with Session("wait") as session:
        session.expect("ready")
        session.process.send_signal(signal.SIGTSTP)
        session.process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        wait_until(lambda: session.raw)
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
        wait_until(lambda: session.raw)


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
        wait_until(lambda: session.raw)
        os.kill(job, signal.SIGTERM)
        session.shell(b"w")
        while (line := session.process.stdout.readline().strip()) != b"ended":
            assert line.startswith(b"typed")
        assert session.restored


def test_raw_terminal_on_what_is_no_terminal_does_nothing():
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


# Keys


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (b"plain", [b"plain"]),
        (b"a\x01xb", [b"a", Key.QUIT, b"b"]),
        (b"\x01h", [Key.HELP]),
        (b"a\x01\x01b", [b"a\x01b"]),
        (b"\x01\x01x", [b"\x01x"]),
        (b"\x01q", [Key.UNKNOWN]),
        (b"\x01", []),
    ],
)
def test_escape_keys(typed, meant):
    assert EscapeParser().feed(typed) == meant


@given(st.lists(st.sampled_from([b"\x01", b"x", b"h", b"z", b"\xff"]), max_size=20))
def test_torn_escape_keys_mean_the_same(pieces):
    def flat(items):
        return [
            part
            for item in items
            for part in ([item] if isinstance(item, Key) else [bytes((byte,)) for byte in item])
        ]

    parser = EscapeParser()
    torn = [item for piece in pieces for item in parser.feed(piece)]
    assert flat(torn) == flat(EscapeParser().feed(b"".join(pieces)))


def test_help_is_for_a_raw_terminal():
    assert HELP.count("\n") == HELP.count("\r\n") > 3


# Input


class Guest:
    """What an input pump fed."""

    def __init__(self):
        self.got = bytearray()
        self.keys = []
        self.room = True
        self.ended = threading.Event()

    def feed(self, data):
        self.got += data
        return self.room

    def pump(self, fd, **options):
        return InputPump(fd, self.feed, self.ended.set, **options)


@pytest.fixture
def guest():
    return Guest()


@pytest.fixture
def pipe():
    with contextlib.ExitStack() as stack:
        ends = []
        for fd in os.pipe():
            ends.append(stack.enter_context(os.fdopen(fd, "rb" if not ends else "wb", 0)))
        yield ends


@pytest.fixture
def terminal():
    """A pseudoterminal: master and slave."""
    fds = list(pty.openpty())
    yield fds
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def test_the_pump_passes_all_and_tells_the_end(guest, pipe):
    read, write = pipe
    with guest.pump(read.fileno()):
        write.write(b"one")
        wait_until(lambda: guest.got == b"one")
        write.write(b"two")
        write.close()
        assert guest.ended.wait(PATIENCE)
    assert guest.got == b"onetwo"


def test_a_full_guest_stops_the_pump_until_it_has_room(guest, pipe):
    read, write = pipe
    guest.room = False
    with guest.pump(read.fileno()) as pump:
        write.write(b"first")
        wait_until(lambda: guest.got == b"first")
        write.write(b"second")
        time.sleep(0.05)
        assert guest.got == b"first"
        guest.room = True
        pump.wake()
        wait_until(lambda: guest.got == b"firstsecond")
    pump.wake()


def test_the_pump_can_be_stopped_while_it_waits(guest, pipe):
    before = len(os.listdir("/proc/self/fd"))
    with guest.pump(pipe[0].fileno()):
        pass
    assert not guest.ended.is_set()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_input_at_all_is_an_end(guest):
    directory = os.open("/", os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDONLY)
    # A number so high that nothing else gets it meanwhile.
    closed = os.dup2(null, 900)
    os.close(closed)
    for fd in (directory, null, closed):
        guest.ended.clear()
        with guest.pump(fd):
            assert guest.ended.wait(PATIENCE)
    os.close(directory)
    os.close(null)
    assert not guest.got


def test_escape_keys_work_while_the_guest_takes_nothing(guest, terminal):
    master, slave = terminal
    guest.room = False
    with RawTerminal(slave), guest.pump(slave, on_key=guest.keys.append):
        os.write(master, b"abc\x01")
        wait_until(lambda: guest.got == b"abc")
        os.write(master, b"hx\x01x")
        wait_until(lambda: Key.QUIT in guest.keys)
    assert guest.got == b"abcx"
    assert guest.keys == [Key.HELP, Key.QUIT]


def test_typing_into_a_stuck_guest_is_bounded(guest, pipe):
    read, write = pipe
    guest.room = False
    with guest.pump(read.fileno(), on_key=guest.keys.append):
        for _ in range(300):
            write.write(bytes(4096).replace(b"\0", b"x"))
        write.write(b"\x01x")
        wait_until(lambda: guest.keys)
    assert 1 << 20 <= len(guest.got) < (1 << 20) + 4096


def test_a_terminal_that_goes_away_ends_the_input(guest, terminal):
    with guest.pump(terminal[1], on_key=guest.keys.append):
        os.close(terminal[0])
        terminal[0] = -1
        assert guest.ended.wait(PATIENCE)


@pytest.mark.parametrize(
    ("pieces", "fed"),
    [
        ([], b"\x04"),
        ([b"uname -a\n"], b"uname -a\n\x04"),
        ([b"uname", b" -a"], b"uname -a\n\x04"),
        ([b"a\n", b"b\r"], b"a\nb\r\x04"),
    ],
)
def test_the_end_of_a_script_arrives_as_ctrl_d_on_its_own_line(guest, pieces, fed):
    script = ScriptInput(guest.feed)
    for piece in pieces:
        assert script.feed(piece)
    script.end()
    assert guest.got == fed


# Output


class Failures(list):
    def __call__(self, error):
        self.append(error)


def test_output_is_written_whole(pipe):
    read, write = pipe
    failures = Failures()
    data = os.urandom(300_000)
    os.set_blocking(write.fileno(), False)
    got = bytearray()

    def drain():
        while len(got) < len(data):
            got.extend(os.read(read.fileno(), 5000))

    reader = threading.Thread(target=drain)
    reader.start()
    with OutputWriter(write.fileno(), failures) as writer:
        writer.write(data)
        reader.join(PATIENCE)
    assert got == data
    assert not failures


def test_a_reader_that_went_away_is_reported_once(pipe):
    read, write = pipe
    failures = Failures()
    read.close()
    with OutputWriter(write.fileno(), failures) as writer:
        writer.write(b"x")
        writer.write(b"y")
    assert [error.errno for error in failures] == [errno.EPIPE]
    outcome = output_failure(failures[0])
    assert (outcome.kind, outcome.status) == (OutcomeKind.SIGNALLED, 141)


def test_release_frees_a_writer_that_waits(pipe):
    _, write = pipe
    failures = Failures()
    with OutputWriter(write.fileno(), failures) as writer:
        stuck = threading.Thread(target=writer.write, args=(bytes(200_000),))
        stuck.start()
        time.sleep(0.05)
        assert stuck.is_alive()
        writer.release()
        stuck.join(PATIENCE)
        assert not stuck.is_alive()
    writer.write(b"after the end")
    assert not failures


def test_what_can_be_written_at_once_is_written_after_release(pipe):
    read, write = pipe
    with OutputWriter(write.fileno(), Failures()) as writer:
        writer.release()
        writer.write(b"last words")
    write.close()
    assert os.read(read.fileno(), 100) == b"last words"


def test_a_terminal_that_went_away_is_a_hangup(terminal):
    failures = Failures()
    os.close(terminal[0])
    terminal[0] = -1
    with OutputWriter(terminal[1], failures) as writer:
        writer.write(b"x")
    assert output_failure(failures[0]).status == 128 + signal.SIGHUP


def test_a_full_disk_is_an_error(tmp_path):
    failures = Failures()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open(tmp_path / "out", "wb") as file, OutputWriter(file.fileno(), failures) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            writer.write(bytes(20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, previous)
    assert failures[0].errno == errno.EFBIG
    assert output_failure(failures[0]).status == 125
