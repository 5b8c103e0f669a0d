"""The guest's agent, compiled for this machine and driven over a socket pair."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import patience
from recipe import apt

INIT = Path(apt.__file__).parent.parent / "init"

HELLO, STDOUT, STDERR, EXIT, ERROR = 1, 2, 3, 4, 5
EXEC, EXEC_PART, STDIN, STDIN_EOF, SIGNAL, POWEROFF = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86
WAKE = 0x88

# Gives up CAP_SYS_ADMIN and CAP_SYS_TIME for good (PR_CAPBSET_DROP), and becomes its arguments.
UNPRIVILEGED = """
import ctypes, os, sys
for capability in (21, 25):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's first process, as a program of this machine."""
    output = tmp_path_factory.mktemp("init") / "init"
    sources = sorted(str(file) for file in INIT.glob("*.c"))
    flags = ["-O1", "-Wall", "-Wextra", "-Wno-unused-result", "-Werror"]
    subprocess.run(["gcc", *flags, *sources, "-o", str(output)], check=True)
    return output


class Host:
    """The host's end of the channel."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        line.settimeout(patience())

    def send(self, kind: int, data: bytes = b"") -> None:
        """Sends one frame."""
        self._line.sendall(struct.pack("<BBH", kind, 0, len(data)) + data)

    def raw(self, data: bytes) -> None:
        """Sends bytes that need not be a frame."""
        self._line.sendall(data)

    def receive(self) -> tuple[int, bytes]:
        """The next frame."""
        kind, zero, length = struct.unpack("<BBH", self._exactly(4))
        assert zero == 0
        assert length <= 4096
        return kind, self._exactly(length)

    def run(self, command: str, data: bytes | None = b"") -> tuple[int, bytes, bytes]:
        """Runs a command with `data` as its input; returns status, output, error output."""
        self.send(EXEC, command.encode())
        if data is not None:
            feeder = threading.Thread(target=self._feed, args=(data,))
            feeder.start()
        result = self.result()
        if data is not None:
            feeder.join()
        return result

    def result(self) -> tuple[int, bytes, bytes]:
        """The rest of the running command's output, and its status."""
        output = {STDOUT: b"", STDERR: b""}
        while True:
            kind, data = self.receive()
            if kind == EXIT:
                return struct.unpack("<i", data)[0], output[STDOUT], output[STDERR]
            output[kind] += data

    def _feed(self, data: bytes) -> None:
        for at in range(0, len(data), 4096):
            self.send(STDIN, data[at : at + 4096])
        self.send(STDIN_EOF)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._line.recv(count - len(data))
            assert more, "the agent ended"
            data += more
        return data


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[Host]:
    """A running agent, after its HELLO."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        agent = subprocess.Popen(
            [*command, "--agent", str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        line = Host(ours)
        assert line.receive() == (HELLO, struct.pack("<H", 2))
        yield line
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        assert agent.wait(timeout=patience()) is not None


@pytest.fixture
def host(program: Path) -> Iterator[Host]:
    """A running agent, after its HELLO."""
    with running([str(program)]) as line:
        yield line


def test_output_error_and_status_are_kept_apart(host: Host):
    assert host.run("echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


def test_a_second_command_may_follow(host: Host):
    for word in (b"one", b"two"):
        assert host.run(f"echo {word.decode()}") == (0, word + b"\n", b"")


def test_binary_data_passes_both_ways(host: Host):
    data = bytes(range(256)) * 4096 + os.urandom(12345)
    assert host.run("cat", data) == (0, data, b"")


def test_large_output_arrives_whole_and_before_the_status(host: Host):
    status, output, _ = host.run("head -c 3000000 /dev/zero; exit 3")
    assert (status, len(output)) == (3, 3000000)


def test_a_command_that_ignores_its_input_does_not_block(host: Host):
    assert host.run("exit 5", b"x" * 1000000) == (5, b"", b"")
    assert host.run("echo alive") == (0, b"alive\n", b"")


def test_a_command_waits_for_input_that_comes_late(host: Host):
    host.send(EXEC, b"read line; echo got $line; cat >/dev/null")
    host.send(STDIN, b"word\n")
    assert host.receive() == (STDOUT, b"got word\n")
    host.send(STDIN_EOF)
    assert host.result() == (0, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_whole_group(host: Host, number: signal.Signals):
    host.send(EXEC, b"echo ready; sleep 100; echo not reached")
    assert host.receive() == (STDOUT, b"ready\n")
    # dash loses an interrupt that comes between its vfork and the exec of what it runs.
    time.sleep(0.5)
    host.send(SIGNAL, bytes([number]))
    assert host.result() == (128 + number, b"", b"")


def test_a_command_in_parts_is_put_together(host: Host):
    text = "echo " + "word " * 20000 + "| wc -w"
    parts = [text[at : at + 4000].encode() for at in range(0, len(text), 4000)]
    for part in parts[:-1]:
        host.send(EXEC_PART, part)
    host.send(EXEC, parts[-1])
    assert host.result() == (0, b"20000\n", b"")


def test_a_background_process_does_not_delay_the_status(host: Host):
    assert host.run("sleep 100 & echo started; kill -9 $! ; exit 0") == (0, b"started\n", b"")
    assert host.run("sleep 3 & exit 4")[0] == 4


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (struct.pack("<BBH", 0x7F, 0, 2) + b"ab", b"unknown"),
        (struct.pack("<BBH", EXEC, 9, 4) + b"true", b"malformed"),
        (struct.pack("<BBH", EXEC, 0, 4097), b"malformed"),
        (struct.pack("<BBH", SIGNAL, 0, 0), b"SIGNAL"),
        (struct.pack("<BBH", EXEC, 0, 3) + b"a\0b", b"NUL"),
        (struct.pack("<BBH", WAKE, 0, 0), b"WAKE"),
        (struct.pack("<BBH", WAKE, 0, 40) + bytes(40), b"WAKE"),
        (struct.pack("<BBH", WAKE, 0, 42) + bytes(42), b"WAKE"),
    ],
)
def test_wrong_frames_are_reported_and_survived(host: Host, frame: bytes, word: bytes):
    host.raw(frame)
    kind, text = host.receive()
    assert kind == ERROR
    assert word in text
    assert host.run("echo alive") == (0, b"alive\n", b"")


def test_an_agent_that_cannot_wake_says_why_and_goes_on(program: Path):
    """Without privileges, because the clock here is the host's."""
    denied = b": Operation not permitted"
    with running([sys.executable, "-c", UNPRIVILEGED, str(program)]) as host:
        host.send(WAKE, struct.pack("<Q32s?", time.time_ns(), bytes(range(32)), False))
        assert host.receive() == (ERROR, b"the random numbers could not be renewed" + denied)
        assert host.receive() == (ERROR, b"the clock could not be set" + denied)
        assert host.receive() == (HELLO, b"\x02\x00")
        assert host.run("echo alive") == (0, b"alive\n", b"")


def test_a_second_command_at_once_is_refused(host: Host):
    host.send(EXEC, b"cat")
    host.send(EXEC, b"echo two")
    assert host.receive() == (ERROR, b"a command is already running")
    host.send(STDIN_EOF)
    assert host.result() == (0, b"", b"")


def test_too_long_a_command_is_refused(host: Host):
    for _ in range(33):
        host.send(EXEC_PART, b"x" * 4096)
    host.send(EXEC, b"x")
    kind, text = host.receive()
    assert (kind, b"128 KiB" in text) == (ERROR, True)
    assert host.run("echo alive") == (0, b"alive\n", b"")


def test_frames_split_anywhere_are_put_together(host: Host):
    for byte in struct.pack("<BBH", EXEC, 0, 7) + b"echo hi":
        host.raw(bytes([byte]))
    host.send(STDIN_EOF)
    assert host.result() == (0, b"hi\n", b"")


def test_power_off_ends_with_the_status(program: Path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        agent = subprocess.Popen(
            [str(program), "--agent", str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        line = Host(ours)
        line.receive()
        line.send(POWEROFF, b"\x2a")
        assert agent.wait(timeout=patience()) == 42
