"""How runs end, seen from outside: statuses, signals, the terminal, JSON. With the bare guest."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.kvm

PYKVM = [sys.executable, "-m", "pykvm"]


def boot(kernel: Path, words: str, *options: str, **more) -> subprocess.CompletedProcess:
    """Run the bare guest in mode ``words`` to its end."""
    command = [*PYKVM, "boot", "--kernel", str(kernel), "--append", words, *options]
    more = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60, **more}
    return subprocess.run(command, check=False, **more)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("hello 0", 0, b""),
        ("hello 42", 42, b""),
        ("halt", 0, b""),
        ("reset", 0, b""),
        ("panic", 126, b"panicked"),
        ("triple", 126, b"triple fault"),
    ],
)
def test_ends(bare_kernel, words, status, says):
    done = boot(bare_kernel, words)
    assert done.returncode == status
    assert says in done.stderr
    assert b"Traceback" not in done.stderr
    if words.startswith("hello"):
        assert b"hello" in done.stdout
        assert done.stderr == b""


def test_timeout(bare_kernel):
    done = boot(bare_kernel, "spin", "--timeout", "0.5")
    assert done.returncode == 124
    assert b"0.5 seconds" in done.stderr


def start_echo(kernel: Path, *options: str) -> subprocess.Popen:
    """A run whose guest is known to be running: it has answered."""
    command = [*PYKVM, "boot", "--kernel", str(kernel), "--append", "echo", *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, bufsize=0, **pipes)
    process.stdin.write(b"x")
    assert process.stdout.read(1) == b"x"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(bare_kernel, tmp_path, number):
    log = tmp_path / "stats.json"
    process = start_echo(bare_kernel, "--stats", str(log))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == f"pykvm: ended by {signal.Signals(number).name}\n".encode()
    # Nothing is lost by a signal: the statistics are written.
    assert json.loads(log.read_text())["disks"] == []


def test_a_closed_pipe_ends_the_run(bare_kernel):
    read, write = os.pipe()
    os.close(read)
    try:
        done = boot(bare_kernel, "hello 0", capture_output=False, stdout=write)
    finally:
        os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE


def test_json(bare_kernel, tmp_path):
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(4096))
    done = boot(bare_kernel, "hello 3", "--json", "--disk", f"{disk},serial=S1,readonly=on")
    report = json.loads(done.stdout)
    assert (done.returncode, report["status"], report["end"]) == (3, 3, "power_off")
    assert report["disks"][0]["serial"] == "S1"
    assert report["exits"]["IoExit"] > 0
    assert "guest started" in report["timings"]
    assert b"hello" in done.stderr


def test_console_log_and_stats(bare_kernel, tmp_path):
    log, stats = tmp_path / "console", tmp_path / "stats"
    boot(bare_kernel, "hello 0", "--console-log", str(log), "--stats", str(stats))
    assert b"hello" in log.read_bytes()
    assert json.loads(stats.read_text())["exits"]["IoExit"] > 0


class Terminal:
    """A run on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [*PYKVM, "boot", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def expect(self, text: bytes, seconds: float = 30) -> None:
        """Read until ``text`` has appeared."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} not in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 4096)

    def wait_until_raw(self) -> None:
        """Return once the terminal is in raw mode."""
        for _ in range(3000):
            if not termios.tcgetattr(self.slave)[3] & termios.ICANON:
                return
            time.sleep(0.01)
        raise AssertionError("the terminal was never raw")

    def finish(self) -> int:
        """The exit status; the terminal must be as it was."""
        status = self.process.wait(30)
        assert termios.tcgetattr(self.slave) == self.before
        return status

    def close(self) -> None:
        """Clean up."""
        self.process.kill()
        self.process.wait()
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def terminal(bare_kernel):
    """A spinning guest on a terminal in raw mode."""
    made = Terminal("--kernel", str(bare_kernel), "--append", "spin")
    made.wait_until_raw()
    yield made
    made.close()


def test_escape_keys(terminal):
    os.write(terminal.master, b"\x01h")
    terminal.expect(b"end the run")
    os.write(terminal.master, b"\x01x")
    assert terminal.finish() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_restore_the_terminal(terminal, number):
    terminal.process.send_signal(number)
    assert terminal.finish() == 128 + number


def test_a_closed_terminal_ends_the_run(terminal):
    for name in ("slave", "master"):
        os.close(getattr(terminal, name))
        setattr(terminal, name, -1)
    assert terminal.process.wait(30) == 128 + signal.SIGHUP


def test_start_is_quick_enough_to_be_used_in_tests(bare_kernel):
    """Not a benchmark: a run of the bare guest takes seconds only if something is very wrong."""
    done = boot(bare_kernel, "hello 0", "--json")
    timings = json.loads(done.stdout)["timings"]
    assert timings["ended"] - timings["guest started"] < 10
