"""The guest's agent, compiled for this machine and driven over a socket pair."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent_process import (
    CREDIT,
    ERROR,
    EXIT,
    FIRST_HELLO,
    HELLO,
    OUTPUT_CREDIT,
    OUTPUT_WINDOW,
    POWEROFF,
    PULL,
    PUSH,
    RESIZE,
    RUN,
    RUN_PART,
    SIGNAL,
    STDERR,
    STDIN,
    STDIN_EOF,
    STDOUT,
    WAKE,
    Host,
    Job,
    program,
    running,
    shell,
)
from patience import patience, until

# Gives up CAP_SYS_ADMIN and CAP_SYS_TIME for good (PR_CAPBSET_DROP), and becomes its arguments.
UNPRIVILEGED = """
import ctypes, os, sys
for capability in (21, 25):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


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
    host.send(RUN, shell("read line; echo got $line; cat >/dev/null"))
    host.send(STDIN, b"word\n")
    while not host.jobs[1].output[STDOUT]:
        host.step()
    assert host.jobs[1].end is None
    host.send(STDIN_EOF)
    assert host.finish().result == (0, b"got word\n", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_whole_group_and_is_told_from_a_status(
    host: Host, number: signal.Signals
):
    host.send(RUN, shell("echo ready; sleep 100; echo not reached"))
    while not host.jobs[1].output[STDOUT]:
        host.step()
    # dash loses an interrupt that comes between its vfork and the exec of what it runs.
    time.sleep(0.5)
    host.send(SIGNAL, bytes([number]))
    job = host.finish()
    assert (job.end, job.output[STDOUT]) == ((EXIT, bytes([0, number, 0])), b"ready\n")
    assert host.run(f"exit {128 + number}")[0] == 128 + number
    assert host.jobs[1].end == (EXIT, bytes([128 + number, 0, 0]))


def test_commands_run_side_by_side_each_with_its_own_streams(host: Host):
    for id in range(1, 33):
        host.send(RUN, shell(f"read word; echo $word >&2; echo {id}; exit {id}"), id)
    for id in range(32, 0, -1):
        assert all(host.jobs[other].end is None for other in range(1, id))
        host.send(STDIN, b"word %d\n" % id, id)
        assert host.finish(id).result == (id, b"%d\n" % id, b"word %d\n" % id)


def test_a_reader_that_does_not_read_holds_up_its_own_command_alone(host: Host):
    host.send(RUN, shell("head -c 1000000 /dev/zero; echo done >&2"), 1)
    while len(host.jobs[1].output[STDOUT]) < OUTPUT_WINDOW:
        host.step()
    host.send(RUN, shell("echo other"), 2)
    assert host.finish(2).result == (0, b"other\n", b"")
    assert len(host.jobs[1].output[STDOUT]) == OUTPUT_WINDOW
    host.send(OUTPUT_CREDIT, struct.pack("<II", OUTPUT_WINDOW, 0), 1)
    job = host.finish(1)
    assert (len(job.output[STDOUT]), job.output[STDERR]) == (1000000, b"done\n")


def test_output_that_is_left_after_the_end_waits_for_its_reader(host: Host):
    host.send(RUN, shell("head -c 300000 /dev/zero"), 1)
    while len(host.jobs[1].output[STDOUT]) < OUTPUT_WINDOW:
        host.step()
    host.send(OUTPUT_CREDIT, struct.pack("<II", OUTPUT_WINDOW, 0), 1)
    assert host.finish(1).result == (0, bytes(300000), b"")


def test_a_command_that_does_not_read_holds_up_its_own_input_alone(host: Host):
    host.send(RUN, shell("sleep 100"), 1)
    host.send(STDIN, bytes(32768), 1)
    host.send(STDIN, bytes(32768), 1)
    host.send(RUN, shell("cat"), 2)
    host.feed(b"x" * 200000, 2)
    host.send(STDIN_EOF, b"", 2)
    assert host.finish(2).result == (0, b"x" * 200000, b"")
    host.send(SIGNAL, bytes([signal.SIGKILL]), 1)
    assert host.finish(1).end == (EXIT, bytes([0, signal.SIGKILL, 0]))


def test_more_input_than_allowed_is_refused(host: Host):
    host.send(RUN, shell("sleep 100"), 1)
    for _ in range(20):
        host.send(STDIN, bytes(32768), 1)
    assert host.receive()[:2] in ((CREDIT, 1), (ERROR, 0))
    host.send(SIGNAL, bytes([signal.SIGKILL]), 1)
    while True:
        kind, _, _ = host.receive()
        if kind == EXIT:
            break
    assert host.run("echo alive") == (0, b"alive\n", b"")


def test_a_command_whose_time_is_over_is_terminated(host: Host):
    host.send(RUN, shell("echo ready; sleep 100", timeout_ms=300))
    job = host.finish()
    assert (job.end, job.output[STDOUT]) == ((EXIT, bytes([0, signal.SIGTERM, 1])), b"ready\n")


def test_a_command_that_does_not_take_the_hint_is_killed_with_its_group(host: Host):
    script = "trap '' TERM; (sleep 100; echo no) & echo $!; while :; do sleep 0.1; done"
    host.send(RUN, shell(script, timeout_ms=200))
    job = host.finish()
    assert job.end == (EXIT, bytes([0, signal.SIGKILL, 1]))
    until(lambda: not Path(f"/proc/{int(job.output[STDOUT])}/cmdline").exists())


def test_a_command_that_ends_in_time_is_not_timed_out(host: Host):
    host.send(RUN, shell("exit 3", timeout_ms=60000))
    assert host.finish().end == (EXIT, bytes([3, 0, 0]))


def test_arguments_environment_and_folder_arrive_as_they_are(host: Host, tmp_path: Path):
    script = 'pwd; printf "%s|" "$@" "$A" "$HOME"'
    words = [b"sh", b"-c", script.encode(), b"sh", b"a b", b"", b"\xff*"]
    host.send(RUN, program(*words, env=[b"A=x=y", b"HOME=/h"], cwd=bytes(tmp_path)))
    host.send(STDIN_EOF)
    assert host.finish().result == (0, bytes(tmp_path) + b"\na b||\xff*|x=y|/h|", b"")


def test_a_program_is_looked_for_in_the_path_that_it_gets(host: Host, tmp_path: Path):
    (tmp_path / "mine").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "mine").chmod(0o755)
    host.send(RUN, program(b"mine", env=[b"PATH=/none:" + bytes(tmp_path)]))
    assert host.finish().result == (0, b"found\n", b"")


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (program(b"/none/such"), b"/none/such: No such file"),
        (program(b"/"), b"/: Permission denied"),
        (program(b"/bin/sh", cwd=b"/none"), b"/none: No such file"),
        (b"short", b"too short"),
        (program(b"/bin/sh")[:-1], b"other strings"),
        (program(b"/bin/sh") + b"more", b"other strings"),
        (program(), b"at most"),
        (shell("true", flags=1) + b"x\0", b"other strings"),
    ],
)
def test_a_command_that_cannot_start_fails_alone(host: Host, payload: bytes, words: bytes):
    host.send(RUN, shell("cat"), 2)
    host.send(RUN, payload, 1)
    kind, text = host.finish(1).end or (0, b"")
    assert kind == ERROR
    assert words in text
    host.send(STDIN_EOF, b"", 2)
    assert host.finish(2).result == (0, b"", b"")


def test_too_many_commands_at_once_are_refused(host: Host):
    for id in range(1, 66):
        host.send(RUN, shell("cat"), id)
    assert host.finish(65).end == (ERROR, b"too many requests at once")
    host.send(STDIN_EOF, b"", 7)
    assert host.finish(7).result == (0, b"", b"")
    host.send(RUN, shell("echo again"), 65)
    assert host.finish(65).result == (0, b"again\n", b"")


def test_an_id_in_use_is_refused(host: Host):
    host.send(RUN, shell("cat"))
    host.send(RUN, shell("echo two"))
    assert host.receive() == (ERROR, 0, b"a request has the id of one that still runs")
    host.send(STDIN_EOF)
    assert host.finish().result == (0, b"", b"")


def test_a_command_in_parts_is_put_together(host: Host):
    payload = shell("echo " + "word " * 20000 + "| wc -w")
    for at in range(0, len(payload) - 4000, 4000):
        host.send(RUN_PART, payload[at : at + 4000])
    host.send(RUN, payload[at + 4000 :])
    assert host.finish().result == (0, b"20000\n", b"")


def test_too_long_a_command_is_refused(host: Host):
    for _ in range(9):
        host.send(RUN_PART, b"x" * 32768)
    host.send(RUN, b"x")
    kind, text = host.finish().end or (0, b"")
    assert (kind, b"256 KiB" in text) == (ERROR, True)
    assert host.run("echo alive") == (0, b"alive\n", b"")


def test_a_background_process_does_not_delay_the_status(host: Host):
    assert host.run("sleep 100 & echo started; kill -9 $! ; exit 0") == (0, b"started\n", b"")
    assert host.run("sleep 3 & exit 4")[0] == 4
    status, output, _ = host.run("yes & sleep 0.1; exit 5")
    assert status == 5
    assert output.startswith(b"y\ny\n")


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (struct.pack("<BBH", 0x7F, 0, 2) + b"ab", b"unknown"),
        (struct.pack("<BBH", RUN, 1, 32769), b"malformed"),
        (struct.pack("<BBH", SIGNAL, 0, 0), b"SIGNAL"),
        (struct.pack("<BBH", SIGNAL, 0, 1) + b"\0", b"SIGNAL"),
        (struct.pack("<BBH", RESIZE, 0, 1) + b"\0", b"RESIZE"),
        (struct.pack("<BBH", WAKE, 0, 0), b"WAKE"),
        (struct.pack("<BBH", WAKE, 0, 50) + bytes(50), b"WAKE"),
        (struct.pack("<BBH", PULL, 0, 2) + b"/x", b"the id"),
    ],
)
def test_wrong_frames_are_reported_and_survived(host: Host, frame: bytes, word: bytes):
    host.raw(frame)
    kind, _, text = host.receive()
    assert kind == ERROR
    assert word in text
    assert host.run("echo alive") == (0, b"alive\n", b"")


def wake_frame(number: int, flags: int) -> bytes:
    return struct.pack("<QBQ32s", number, flags, time.time_ns(), bytes(range(32)))


def test_an_agent_that_cannot_wake_says_why_and_goes_on(agent: Path):
    """Without privileges, because the clock here is the host's."""
    denied = b": Operation not permitted"
    with running([sys.executable, "-c", UNPRIVILEGED, str(agent)]) as host:
        host.send(WAKE, wake_frame(77, 3), 0)
        problem = b"the random numbers could not be renewed" + denied
        problem += b"; the clock could not be set" + denied
        assert host.receive() == (HELLO, 0, struct.pack("<HQ", 3, 77) + problem)
        assert host.run("echo alive") == (0, b"alive\n", b"")


def test_commands_of_before_a_restore_go_on_unheard(host: Host, tmp_path: Path):
    """Their ids are free, their output is dropped, and a half sent request is forgotten."""
    noise = f"while [ ! -e {tmp_path}/stop ]; do echo noise; echo more >&2; done; exit 9"
    host.send(RUN, shell(f"{noise}"), 1)
    host.send(RUN, shell(f"read line; cat - >{tmp_path}/late"), 2)
    host.send(STDIN, b"first\nsecond\n", 2)
    host.send(PUSH, struct.pack("<I", 0o644) + bytes(tmp_path / "half"), 3)
    host.send(STDIN, b"half", 3)
    host.send(PULL, b"/dev/zero", 4)
    host.send(RUN_PART, b"half a request", 5)
    host.send(WAKE, wake_frame(78, 0), 0)
    while True:
        kind, id, data = host.receive()
        if (kind, id) == (HELLO, 0):
            assert data == struct.pack("<HQ", 3, 78)
            break
    for id in (1, 2, 3, 4):
        host.send(RUN, shell(f"echo {id}"), id)
    for id in (1, 2, 3, 4):
        assert host.finish(id).result == (0, b"%d\n" % id, b"")
    assert [file.name for file in tmp_path.iterdir() if "push" in file.name] == []
    (tmp_path / "stop").touch()
    assert host.run("echo alive") == (0, b"alive\n", b"")


def test_frames_split_anywhere_are_put_together(host: Host):
    host.jobs[1] = Job()
    payload = shell("echo hi")
    for byte in struct.pack("<BBH", RUN, 1, len(payload)) + payload:
        host.raw(bytes([byte]))
    host.send(STDIN_EOF)
    assert host.finish().result == (0, b"hi\n", b"")


def test_without_a_mailbox_frames_go_over_the_line(agent: Path, tmp_path: Path):
    """The kernel may not let a program map memory, and the mailbox may be too small."""
    small = tmp_path / "small"
    small.write_bytes(bytes(64 * 1024))
    for places in (["/none/such", "0,524288,0"], [str(small), "0,65536,0"], [str(small), "junk"]):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = subprocess.Popen(
                [str(agent), "--agent", str(theirs.fileno()), *places], pass_fds=[theirs.fileno()]
            )
            theirs.close()
            host = Host(ours)
            assert host.receive() == (HELLO, 0, FIRST_HELLO)
            assert host.run("echo alive") == (0, b"alive\n", b"")
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(timeout=patience())


def test_power_off_ends_with_the_status(agent: Path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [str(agent), "--agent", str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        line = Host(ours)
        line.receive()
        line.send(POWEROFF, b"\x2a")
        assert process.wait(timeout=patience()) == 42
