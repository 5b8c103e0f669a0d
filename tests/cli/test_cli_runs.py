"""Ends of runs, seen from outside: statuses, signals, terminal, JSON. With the bare guest."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import patience
from run_on_terminal import Terminal

from pykvm.cli.main import main
from pykvm.machine.exits import ExitHandler, GuestStopped

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


def start_echo(kernel: Path, *options: str, **more) -> subprocess.Popen:
    """A run whose guest is known to be running: it has answered."""
    command = [*PYKVM, "boot", "--kernel", str(kernel), "--append", "echo", *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, bufsize=0, **pipes, **more)
    process.stdin.write(b"x")
    assert process.stdout.read(1) == b"x"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(bare_kernel, tmp_path, number):
    log = tmp_path / "stats.json"
    process = start_echo(bare_kernel, "--stats", str(log))
    process.send_signal(number)
    # Before the end of its input, which ends the guest, too.
    assert process.wait(patience()) == 128 + number
    _, err = process.communicate()
    assert err == f"pykvm: ended by {signal.Signals(number).name}\n".encode()
    # Nothing is lost by a signal: the statistics are written.
    assert json.loads(log.read_text())["disks"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2])
def test_a_signal_at_any_moment(bare_kernel, number, delay):
    """While modules are imported, the VM is built, runs or is closed."""
    command = [*PYKVM, "boot", "--kernel", str(bare_kernel), "--append", "hello 0"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # Until Python runs our first lines, its own rules hold.
    wait_for_handler(process)
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=patience())
    # It may have ended before, or be so near its end that the kernel's rules hold again.
    assert process.returncode in {0, 128 + number, -number}
    assert err in {b"", f"pykvm: ended by {signal.Signals(number).name}\n".encode()}


def wait_for_handler(process: subprocess.Popen) -> None:
    """Return once ``process`` handles SIGTERM, which Python alone does not, or has ended."""
    mask = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        if int(status.split("SigCgt:")[1].split()[0], 16) & mask:
            return
        time.sleep(0.001)


def test_a_signal_that_was_ignored_stays_so(bare_kernel):
    process = start_echo(
        bare_kernel, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    process.stdin.write(b"y")
    assert process.stdout.read(1) == b"y"
    process.communicate(b"\x04", timeout=patience())
    assert process.returncode == 0


# -- standard streams -----------------------------------------------------------


def test_a_reader_that_had_enough_ends_the_run_quietly(bare_kernel):
    read, write = os.pipe()
    os.close(read)
    try:
        done = boot(
            bare_kernel, "hello 0", capture_output=False, stdout=write, stderr=subprocess.PIPE
        )
    finally:
        os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("redirection", "status", "out", "err"),
    [
        ("<&-", 3, b"hello from CPL3\n", b""),
        (">&-", 125, b"", b"output cannot be written: bad file descriptor"),
        ("2>&-", 3, b"hello from CPL3\n", b""),
        ("<&- >&- 2>&-", 125, b"", b""),
        (">/dev/full", 125, b"", b"output cannot be written: no space left on device"),
        ("2>/dev/full", 3, b"hello from CPL3\n", b""),
        ("--json >/dev/full", 125, b"", b"standard output cannot be written: no space left"),
        ("--json >&-", 125, b"", b"standard output cannot be written"),
        ("--stats /dev/full", 125, b"hello from CPL3\n", b"--stats /dev/full: no space left"),
        (
            "--console-log /dev/full",
            3,
            b"hello from CPL3\n",
            b"the console log /dev/full is not complete: no space left on device",
        ),
    ],
)
def test_closed_and_full_streams(bare_kernel, redirection, status, out, err):
    command = f"exec {sys.executable} -m pykvm boot --kernel {bare_kernel} --append 'hello 3'"
    done = subprocess.run(
        ["bash", "-c", f"{command} {redirection}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=patience(),
    )
    assert done.returncode == status
    assert done.stdout == out
    assert err in done.stderr
    assert b"internal" not in done.stderr
    assert done.stderr.count(b"\n") <= (2 if b"--json" in redirection.encode() else 1)


def test_a_closed_stream_does_not_become_a_file_of_ours(bare_kernel, tmp_path):
    """The first file opened takes the lowest number: messages must not go into it."""
    log = tmp_path / "log"
    command = f"exec {sys.executable} -m pykvm boot --kernel {bare_kernel} --append panic"
    done = subprocess.run(
        ["bash", "-c", f"{command} --console-log {log} <&- >&- 2>&-"],
        check=False,
        timeout=patience(),
    )
    assert done.returncode == 126
    assert log.read_bytes() == b""


@pytest.mark.parametrize("option", ["--help", "--version", "boot --help", "doctor --help"])
def test_help_that_cannot_be_written(option):
    for target, status in ((">/dev/full", 125), (">&-", 125), ("| true", 0)):
        pipe = f"{sys.executable} -m pykvm {option} {target}"
        done = subprocess.run(
            ["bash", "-c", pipe], capture_output=True, check=False, timeout=patience()
        )
        assert done.returncode == status
        assert b"Exception" not in done.stderr
        assert b"Traceback" not in done.stderr


def test_a_slow_reader_loses_nothing(bare_kernel):
    process = start_echo(bare_kernel, "--timeout", str(patience()))
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    data = bytes(range(65, 91)) * 230
    process.stdin.write(data + b"\x04")
    time.sleep(1.5)  # the pipe is full by now, and the guest stands still
    assert process.poll() is None
    out, err = process.communicate(timeout=patience())
    assert (process.returncode, out, err) == (0, data, b"")


@pytest.mark.parametrize("where", ["stdout", "log"])
def test_output_that_nobody_reads_does_not_delay_the_end(bare_kernel, tmp_path, where):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    options = ["--console-log", str(fifo)] if where == "log" else []
    process = start_echo(bare_kernel, *options, "--timeout", "2")
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        process.stdin.write(b"x" * 6000)
        if where == "log":
            process.communicate(timeout=patience())
        assert process.wait(patience()) == 124
    finally:
        os.close(reader)
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def test_few_descriptors(bare_kernel):
    command = f"ulimit -n 8; exec {sys.executable} -m pykvm boot --kernel {bare_kernel}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=False, timeout=patience()
    )
    assert done.returncode == 125
    assert b"too many open files; raise the limit of open files (ulimit -n)" in done.stderr
    assert done.stderr.count(b"\n") == 1


# -- reports -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("keys", "shared", "kind"),
    [("", False, "anonymous"), (",shared=on", True, "a memfd"), (",thp=off", False, "4 KiB pages")],
)
def test_the_backing_of_memory_is_reported(bare_kernel, keys, shared, kind):
    done = boot(bare_kernel, "hello 3", "--json", "--timings", "-m", f"16M{keys}")
    memory = json.loads(done.stdout)["memory"]
    assert (memory["size"], memory["shared"]) == (16 << 20, shared)
    told = next(line for line in done.stderr.splitlines() if b"guest memory:" in line)
    assert kind.encode() in told
    assert memory["large_pages"] == (b"large pages" in told)


def test_json_of_a_failure_is_complete(bare_kernel, tmp_path, capfd, monkeypatch):
    """Also a run that pykvm gives up leaves its report and statistics; the error is said once."""
    stats = tmp_path / "stats"

    def give_up(self: object, exit_: object) -> None:
        raise GuestStopped("the guest did something", "do something else")

    monkeypatch.setattr(ExitHandler, "_port", give_up)
    options = ["--kernel", str(bare_kernel), "--append", "hello 0", "--stats", str(stats), "--json"]
    assert main(["boot", *options]) == 125
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert (report["status"], report["end"]) == (125, "error")
    assert report["reason"] == "the guest did something; do something else"
    assert err == f"pykvm: {report['reason']}\n"
    assert "exits" in json.loads(stats.read_text())


def test_a_folder_is_a_guest(bare_kernel, tmp_path):
    """With only one flavour, and without agent or initrd."""
    (tmp_path / "kernel").write_bytes(bare_kernel.read_bytes())
    entry = {"kernel": "kernel", "append": "hello 9"}
    manifest = {"format": 1, "name": "g", "flavours": {"emulated": entry}}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    command = [sys.executable, "-m", "pykvm", "boot", str(tmp_path)]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=patience())
    assert (done.returncode, done.stdout, done.stderr) == (9, b"hello from CPL3\n", b"")
    # It has no agent: nobody ran the command, so there is no status to pass on.
    command += ["--exec", "true", "--append", "0", "--json"]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=patience())
    assert done.returncode == 9
    # The session has a thread, which must not run before the process is confined.
    assert "thread" not in str(json.loads(done.stdout)["sandbox"])
    entry["append"] = "halt"
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=patience())
    assert done.returncode == 125
    assert b"halted before it could run the command" in done.stderr


def test_append_is_repeated_and_memory_is_given(bare_kernel):
    command = [*PYKVM, "boot", "--kernel", str(bare_kernel), "-m", "32M"]
    command += ["--append", "hello", "--append", "6"]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=patience())
    assert (done.returncode, done.stdout) == (6, b"hello from CPL3\n")


def test_console_log_and_stats(bare_kernel, tmp_path):
    log, stats = tmp_path / "console", tmp_path / "stats"
    boot(bare_kernel, "hello 0", "--console-log", str(log), "--stats", str(stats))
    assert b"hello" in log.read_bytes()
    assert json.loads(stats.read_text())["exits"]["IoExit"] > 0


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
    terminal.expect(b"\r\npykvm: ended by Ctrl-a x\r\n")
    assert terminal.finish() == 0


@pytest.mark.parametrize(
    "number", [*[1, 2, 3, 5, 6, 10, 12, 14, 15, 16, 24, 26, 27, 29, 30, 31], *[34, 40, 64]]
)
def test_signals_restore_the_terminal(terminal, number):
    """All whose default is to end a process (signal(7)), but those of faults and SIGKILL."""
    terminal.process.send_signal(number)
    assert terminal.finish() == 128 + number


def test_a_closed_terminal_ends_the_run(terminal):
    for name in ("slave", "master"):
        os.close(getattr(terminal, name))
        setattr(terminal, name, -1)
    assert terminal.process.wait(patience()) == 128 + signal.SIGHUP


def test_start_is_quick_enough_to_be_used_in_tests(bare_kernel):
    """Not a benchmark: a run of the bare guest takes seconds only if something is very wrong."""
    done = boot(bare_kernel, "hello 0", "--json")
    timings = json.loads(done.stdout)["timings"]
    assert timings["ended"] - timings["guest started"] < 10


@pytest.mark.parametrize(
    ("words", "pattern", "status", "says"),
    [
        ("hello 7", "hel+o", 0, b"the console showed 'hel+o'"),
        ("hello 7", "farewell", 125, b"before the console showed 'farewell'"),
        ("panic", "hello", 126, b"panicked"),
    ],
)
def test_a_text_on_the_console_ends_the_run(bare_kernel, words, pattern, status, says):
    done = boot(bare_kernel, words, "--until", pattern)
    assert done.returncode == status
    assert says in done.stderr


def test_the_reason_of_the_end_is_a_line_of_its_own(bare_kernel):
    one = {"capture_output": False, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = boot(bare_kernel, "hello 7", "--until", "hel", **one)
    *console, reason = done.stdout.split(b"\n")[:-1]
    assert reason == b"pykvm: the console showed 'hel'"
    assert len(console) == 1
    assert console[0].startswith(b"hel")


def test_exec_has_no_console_to_watch(capfd):
    assert main(["boot", "guest", "--exec", "true", "--until", "x"]) == 2
    assert "--exec hides" in capfd.readouterr().err
