"""Input reaches the guest. The guest's output is written, or its loss is reported."""

import contextlib
import errno
import os
import pty
import resource
import signal
import threading
import time

import pytest
from patience import PATIENCE, ends, in_thread, until

from pykvm.cli.boot.escape_keys import Key
from pykvm.cli.boot.streams import InputPump, OutputWriter, ScriptInput, output_failure
from pykvm.cli.boot.terminal import RawTerminal
from pykvm.cli.say import put
from pykvm.machine.outcome import OutcomeKind


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


# -- input -------------------------------------------------------------------


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


def test_a_bug_ends_the_input_and_is_reported(guest, pipe, monkeypatch):
    """So nobody waits for a guest, or at a terminal, that no input reaches."""

    def buggy(data):
        raise ZeroDivisionError

    bugs = []
    monkeypatch.setattr(threading, "excepthook", bugs.append)
    guest.feed = buggy
    read, write = pipe
    with guest.pump(read.fileno()):
        write.write(b"one")
        assert guest.ended.wait(PATIENCE)
    assert [bug.exc_type for bug in bugs] == [ZeroDivisionError]


def test_the_pump_passes_all_and_tells_the_end(guest, pipe):
    read, write = pipe
    with guest.pump(read.fileno()):
        write.write(b"one")
        until(lambda: guest.got == b"one")
        write.write(b"two")
        write.close()
        assert guest.ended.wait(PATIENCE)
    assert guest.got == b"onetwo"


def test_a_full_guest_stops_the_pump_until_it_has_room(guest, pipe):
    read, write = pipe
    guest.room = False
    with guest.pump(read.fileno()) as pump:
        write.write(b"first")
        until(lambda: guest.got == b"first")
        write.write(b"second")
        time.sleep(0.05)
        assert guest.got == b"first"
        guest.room = True
        pump.wake()
        until(lambda: guest.got == b"firstsecond")
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
        until(lambda: guest.got == b"abc")
        os.write(master, b"hx\x01x")
        until(lambda: Key.QUIT in guest.keys)
    assert guest.got == b"abcx"
    assert guest.keys == [Key.HELP, Key.QUIT]


def test_typing_into_a_stuck_guest_is_bounded(guest, pipe):
    read, write = pipe
    guest.room = False
    with guest.pump(read.fileno(), on_key=guest.keys.append):
        for _ in range(300):
            write.write(bytes(4096).replace(b"\0", b"x"))
        write.write(b"\x01x")
        until(lambda: guest.keys)
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
    script = ScriptInput(guest.feed, exact=False)
    for piece in pieces:
        assert script.feed(piece)
    script.end()
    assert guest.got == fed


def test_control_bytes_for_the_bundled_guest_are_quoted(guest):
    script = ScriptInput(guest.feed, exact=True)
    for piece in (b"a\x04", b"\x16b\0\x03\r\x16", b"\x04 no newline"):
        assert script.feed(piece)
    assert guest.got == b"a\x16\x04\x16\x16b\0\x03\r\x16\x16\x16\x04 no newline"
    script.end()
    assert guest.got.endswith(b" no newline\x04")


# -- output ------------------------------------------------------------------


class Failures(list):
    def __call__(self, error):
        self.append(error)


def test_output_is_written_completely(pipe):
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


def test_output_that_need_not_wait_is_written_after_release(pipe):
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


@pytest.mark.parametrize("blocking", [False, True])
def test_all_is_written_to_a_stream_that_somebody_made_non_blocking(pipe, blocking):
    reader, writer = pipe
    os.set_blocking(writer.fileno(), blocking)
    text = "0123456789abcdef" * (1 << 16)
    thread = in_thread(lambda: put(writer.fileno(), text))
    got = b""
    while len(got) < len(text):
        got += reader.read(1 << 16)
    assert ends(thread)
    assert got.decode() == text
