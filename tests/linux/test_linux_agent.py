"""The agent in a Linux guest: many requests side by side, bulk data, and what ends a command."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from patience import linux_patience, patience

import pykvm
from pykvm import Machine
from pykvm.agent.client import AgentClient
from pykvm.agent.mailbox import MARK
from pykvm.agent.protocol import RunRequest
from pykvm.agent.requests import Exit
from pykvm.machine.agent_link import connect

pytestmark = [pytest.mark.kvm, pytest.mark.linux]


class Watch:
    """Waits for the events of one request, or of the conversation."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.err = bytearray()
        self.end: Any = None
        self._over = threading.Event()

    def wait(self) -> Any:
        """The end: Exit, a mode, or a reason."""
        assert self._over.wait(linux_patience()), "no answer"
        return self.end

    def stdout(self, data: bytes) -> None:
        self.out += data

    data = stdout

    def stderr(self, data: bytes) -> None:
        self.err += data

    def room(self) -> None:
        pass

    def ready(self) -> None:
        self._set("ready")

    def exited(self, exit: Exit) -> None:
        self._set(exit)

    def done(self, mode: int) -> None:
        self._set(mode)

    def failed(self, reason: str) -> None:
        self._set(reason)

    def _set(self, end: Any) -> None:
        self.end = end
        self._over.set()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A guest whose agent has answered."""
    config = pykvm.MachineConfig(guest="guest", agent=True, console="none")
    with Machine(config) as machine:
        yield machine


@pytest.fixture(scope="module")
def client(machine: Machine) -> AgentClient:
    watch = Watch()
    client = connect(machine, watch)
    machine.start()
    assert watch.wait() == "ready"
    return client


def run(client: AgentClient, command: bytes | Sequence[bytes], **more: Any) -> Watch:
    watch = Watch()
    client.run(RunRequest(command, stdin=False, **more), watch)
    return watch


def test_frames_go_through_the_mailbox(machine: Machine, client: AgentClient) -> None:
    assert machine.mailbox is not None
    assert machine.ram.u64[machine.mailbox.start // 8] == MARK
    assert run(client, b"true").wait() == Exit(0, 0, False)


def test_commands_run_side_by_side(client: AgentClient) -> None:
    watches, handles = [], []
    for number in range(8):
        watch = Watch()
        line = b"read word; echo $word %d; echo oops >&2; exit %d" % (number, number)
        handles.append(client.run(RunRequest(line), watch))
        watches.append(watch)
    # All run at once, because the last one ends first.
    for number in reversed(range(8)):
        handles[number].stdin(b"word\n")
        assert watches[number].wait() == Exit(number, 0, False)
        assert bytes(watches[number].out) == b"word %d\n" % number
        assert bytes(watches[number].err) == b"oops\n"
        assert all(watch.end is None for watch in watches[:number])


def test_ten_mebibytes_each_way_arrive_as_they_are(client: AgentClient) -> None:
    data = os.urandom(10 << 20)
    push, pull = Watch(), Watch()
    handle = client.push(b"/tmp/large", 0o640, push)
    handle.data(data)
    handle.end()
    assert push.wait() == 0o640
    # Meanwhile nobody else waits.
    client.pull(b"/tmp/large", pull)
    assert run(client, b"echo quick").wait() == Exit(0, 0, False)
    assert pull.wait() == 0o640
    assert pull.out == data
    assert run(client, b"rm /tmp/large").wait() == Exit(0, 0, False)


def test_a_pushed_script_runs(client: AgentClient) -> None:
    push = Watch()
    handle = client.push(b"/tmp/script", 0o755, push)
    handle.data(b'#!/bin/sh\necho "$1" "$A" "$PWD"\nexit 4\n')
    handle.end()
    assert push.wait() == 0o755
    watch = run(client, (b"/tmp/script", b"a b"), env=((b"A", b"c"),), cwd=b"/mnt")
    assert (watch.wait(), bytes(watch.out)) == (Exit(4, 0, False), b"a b c /mnt\n")


def test_an_applet_needs_no_file(client: AgentClient) -> None:
    watch = run(client, (b"seq", b"3"))
    assert (watch.wait(), bytes(watch.out)) == (Exit(0, 0, False), b"1\n2\n3\n")


def test_missing_files_and_programs_are_errors_of_the_request(client: AgentClient) -> None:
    pull = Watch()
    client.pull(b"/none/such", pull)
    assert pull.wait() == "/none/such: No such file or directory"
    assert run(client, (b"/none/such",)).wait() == "/none/such: No such file or directory"
    assert run(client, b"exit 3").wait() == Exit(3, 0, False)


def test_the_time_limit_ends_the_whole_group(client: AgentClient) -> None:
    before = time.monotonic()
    assert run(client, b"sleep 300; true", timeout=0.2).wait() == Exit(0, signal.SIGTERM, True)
    # Long enough for the shell to come to its first line, wherever that takes long.
    stubborn = run(client, b"trap '' TERM; while :; do sleep 0.1; done", timeout=patience(1))
    assert stubborn.wait() == Exit(0, signal.SIGKILL, True)
    assert time.monotonic() - before < 300


def test_the_kernels_messages(client: AgentClient) -> None:
    text = b"a message of this test"
    assert run(client, b"echo '%s' > /dev/kmsg" % text).wait() == Exit(0, 0, False)
    watch = Watch()
    client.dmesg(watch)
    assert watch.wait() == 0
    assert text in watch.out
    assert b"Linux version" in watch.out


def test_disks_are_looked_for(client: AgentClient) -> None:
    watch = Watch()
    client.rescan(watch)
    assert watch.wait() == 0


LINES = [
    b"",
    b"# nothing",
    b"echo hi",
    b"exit 3",
    b"false",
    b"cd /; pwd",
    b"pwd; umask; env | sort; echo $PPID",
    b"echo $0 $# $- $?",
    b"ls /proc/self/fd",
    b"(",
    b"echo one\n(\necho two",
    b"echo 'no end",
    b"cat <<END\nhere $((1 + 2))\nEND",
    b"read first; echo got $first; cat",
    b"exec cat",
    b"kill -9 $$",
    b"kill -TERM $$; echo no",
    b"exec ls /",
    b"ls /none/such",
    b"none-such",
    b"none-such || exit 4",
    b"set -e; false; echo no",
    b"set -u; echo $none; echo no",
    b"trap 'echo bye' EXIT; exit 2",
    b"echo a; echo b >&2; exec 1>&2; echo c",
    b"sleep 0.1 & wait; echo $?",
    b"(sleep 3; echo late) & exit 5",
    b"exec 5>/tmp/five; echo five >&5; echo 5",
    b"exec >&- 2>&-; exit 6",
    b"cd /tmp; trap 'pwd' EXIT; (exit 7); exit",
    b"echo a | { read x; exit 8; }; echo $?; exit 9",
    b"x=1; f() { echo $x$1; }; f 2; unset x; f 3",
    b"return 5; echo no",
    b"printf 'a\\0b\\377'; echo '\xff\xc3\xbc'",
    b"alias e=echo\ne hi",
    b"readonly r=1; r=2; echo no",
    b"echo " + b"y" * 20_000 + b"; exit 1",
    b"echo " + b"z" * 100_000 + b" | wc -c",
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:20].decode("latin-1"))
def test_a_shell_that_waited_differs_in_nothing_from_a_new_one(
    client: AgentClient, line: bytes
) -> None:
    settled = Watch()
    client.settle(settled)
    assert settled.wait() == 0
    results = []
    for command in (line, (b"/bin/sh", b"-c", line)):
        watch = Watch()
        handle = client.run(RunRequest(command), watch)
        handle.stdin(b"input\nmore\n")
        handle.stdin_eof()
        results.append((watch.wait(), bytes(watch.out), bytes(watch.err)))
    assert results[0] == results[1]


def test_shells_wait_and_each_runs_one_line(client: AgentClient) -> None:
    settled = Watch()
    client.settle(settled)
    assert settled.wait() == 0
    pids = []
    for _ in range(2):
        watch = run(client, b"echo $$ $left; left=over; cd /tmp; exit 1")
        assert watch.wait() == Exit(1, 0, False)
        pids.append(bytes(watch.out).split())
    assert pids[0] != pids[1]
    assert [len(words) for words in pids] == [1, 1]


def test_the_end_of_a_shell_that_waited_leaves_nothing_in_the_way(client: AgentClient) -> None:
    """Its status is told before the kernel has taken it apart."""
    for _ in range(3):
        settled = Watch()
        client.settle(settled)
        assert settled.wait() == 0
        watch = run(client, b"mount -t tmpfs none /mnt && cd /mnt && exec 7>file && echo x >&7")
        assert watch.wait() == Exit(0, 0, False), watch.err
        assert run(client, b"umount /mnt").wait() == Exit(0, 0, False)


def test_shells_that_were_killed_are_replaced(client: AgentClient) -> None:
    for _ in range(2):
        settled = Watch()
        client.settle(settled)
        assert settled.wait() == 0
        assert run(client, b"kill -9 -1").wait() == Exit(0, 0, False)
        watch = run(client, b"echo alive")
        assert (watch.wait(), bytes(watch.out)) == (Exit(0, 0, False), b"alive\n")


def test_a_command_that_is_killed_at_once_does_not_run_again(client: AgentClient) -> None:
    settled = Watch()
    client.settle(settled)
    assert settled.wait() == 0
    watch = Watch()
    handle = client.run(RunRequest(b"sleep 300; echo no"), watch)
    handle.signal(signal.SIGKILL)
    assert (watch.wait(), bytes(watch.out)) == (Exit(0, signal.SIGKILL, False), b"")
