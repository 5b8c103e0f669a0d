"""--exec with a guest that is a function: whose status counts, and who waits for whom."""

import os
import struct
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from patience import patience, until

from pykvm.agent.protocol import Frame, FrameDecoder, Kind, RunRequest, encode
from pykvm.cli.boot import exec_session
from pykvm.cli.boot.exec_session import CommandSession
from pykvm.machine import command as command_run
from pykvm.machine.end import EndOfRun
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.run_state import RunState

HELLO = encode(Kind.HELLO, struct.pack("<HQ", 3, 0))


def exit_frame(status: int) -> bytes:
    return encode(Kind.EXIT, bytes([status, 0, 0]), 1)


def run_frame(text: bytes) -> bytes:
    return encode(Kind.RUN, RunRequest(text).encode(), 1)


def awake(machine, problem: bytes = b"") -> bytes:
    """The agent's answer to WAKE."""
    wake = FrameDecoder().feed(bytes(machine.sent))[0]
    return encode(Kind.HELLO, b"\3\0" + wake.payload[:8] + problem)


class FakeMachine:
    """Runs ``guest(machine)`` in place of a guest, then waits for the end."""

    def __init__(self, guest, restored, disks):
        self._guest = guest
        self._end = EndOfRun()
        self.sent = bytearray()
        self.disk_requests = 0
        self.busy = False
        self.channel = None
        self.board = SimpleNamespace(channel=SimpleNamespace(feed=self._feed, on_room=None))
        self.timings = SimpleNamespace(mark=lambda name: None)
        self.status = RunState.RUNNING
        self.resumes = 0
        self.restored = restored
        self.disks = disks
        self.unseen_disks = bool(disks)
        self.mailbox = None

    def _feed(self, data):
        self.sent += data
        return True

    def run(self, timeout):
        self._guest(self)
        assert self._end.wait(patience()), "nobody ended the run"
        return self._end.outcome

    def finish(self, outcome):
        self._end.set(outcome)

    def statistics(self):
        self.disk_requests += self.busy
        # Time passes whatever the guest does.
        disk = {"rd_operations": self.disk_requests, "idle_time_ns": time.monotonic_ns()}
        return {"disks": [disk], "exits": {}}


@pytest.fixture
def run(monkeypatch):
    """Run a guest and return its result. Standard input is empty, output is captured."""
    read, write = os.pipe()
    os.close(write)
    monkeypatch.setattr(exec_session, "STDIN", read)

    def run(guest, text="true", *, restored=False, disks=()):
        machine = FakeMachine(guest, restored, disks)
        with ExitStack() as stack:
            session = CommandSession(stack, machine, text, json=True)
            outcome = session.run(None)
            session.release()
        return SimpleNamespace(outcome=outcome, output=session.output, machine=machine)

    yield run
    os.close(read)


def powers_off(machine, status=0):
    machine.finish(Outcome.power_off(status))


def test_the_status_and_the_output_are_the_commands(run):
    def guest(machine):
        machine.channel(HELLO + encode(Kind.STDOUT, b"out", 1) + encode(Kind.STDERR, b"err", 1))
        machine.channel(exit_frame(7))
        powers_off(machine, 7)

    done = run(guest, "some command")
    assert done.outcome == Outcome.power_off(7)
    assert done.output == {"stdout": b"out", "stderr": b"err"}
    assert run_frame(b"some command") in done.machine.sent
    assert done.machine.sent.endswith(encode(Kind.POWEROFF, b"\7"))


@pytest.mark.parametrize("disks", [(), ("disk",)])
def test_a_restored_guest_is_woken_and_runs_the_command(run, disks):
    before = time.time_ns()

    def guest(machine):
        machine.channel(b"rest" + awake(machine) + encode(Kind.STDOUT, b"out", 1) + exit_frame(7))
        powers_off(machine, 7)

    done = run(guest, "some command", restored=True, disks=disks)
    assert done.outcome == Outcome.power_off(7)
    assert done.output == {"stdout": b"out", "stderr": b""}
    wake, command, *_ = FrameDecoder().feed(bytes(done.machine.sent))
    assert wake.kind == Kind.WAKE
    _, flags, now_ns, entropy = struct.unpack("<QBQ32s", wake.payload)
    assert before <= now_ns <= time.time_ns()
    assert flags == (7 if disks else 3)
    assert command == Frame(Kind.RUN, 1, RunRequest(b"some command").encode())
    again = FrameDecoder().feed(bytes(run(guest, restored=True).machine.sent))
    assert again[0].payload[17:] != entropy, "each guest has random numbers of its own"


def test_a_restored_guest_that_cannot_wake_has_failed(run):
    said = b"the clock could not be set: Operation not permitted"
    done = run(lambda machine: machine.channel(awake(machine, said)), restored=True)
    assert done.outcome.status == 125
    assert "the clock could not be set" in done.outcome.reason


@pytest.mark.parametrize("text", ["a\nb", "grüße", "\udcff\udc80", "x" * 5000, ""])
def test_any_command_arrives_as_its_bytes(run, text):
    def guest(machine):
        machine.channel(HELLO + exit_frame(0))
        powers_off(machine)

    assert run_frame(os.fsencode(text)) in bytes(run(guest, text).machine.sent)


def test_a_command_that_cannot_be_started_has_failed(run):
    said = encode(Kind.ERROR, b"/bin/sh: No such file or directory", 1)
    done = run(lambda machine: machine.channel(HELLO + said))
    assert done.outcome.status == 125
    assert "/bin/sh: No such file or directory" in done.outcome.reason


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome.reset("the i8042"), "was reset before it could"),
        (Outcome.halted(), "halted before it could"),
        (Outcome.power_off(0), "powered off before it could"),
    ],
)
def test_a_guest_that_ends_first_has_no_status_to_give(run, outcome, words):
    done = run(lambda machine: machine.finish(outcome))
    assert done.outcome.kind is OutcomeKind.ERROR
    assert done.outcome.status == 125
    assert words in done.outcome.reason


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.power_off(0), 0),
        (Outcome.power_off(4), 4),
        (Outcome.reset("the i8042"), 0),
        (Outcome.halted(), 0),
        (Outcome.panic(), 126),
    ],
)
def test_the_guests_own_word_counts_while_the_command_runs(run, outcome, status):
    """``--exec poweroff`` and ``--exec reboot`` are no failures, a panic is."""

    def guest(machine):
        machine.channel(HELLO)
        machine.finish(outcome)

    assert run(guest).outcome.status == status


@pytest.mark.parametrize("outcome", [Outcome.reset(), Outcome.halted()])
def test_after_the_command_its_status_counts(run, outcome):
    def guest(machine):
        machine.channel(HELLO + exit_frame(5))
        machine.finish(outcome)

    assert run(guest).outcome == Outcome.power_off(5)


def test_an_agent_that_makes_no_sense(run):
    done = run(lambda machine: machine.channel(b"\1\0\xff\xffn: "))
    assert done.outcome.status == 125
    assert "agent failed" in done.outcome.reason


def test_a_guest_that_does_not_power_off_is_ended(run, monkeypatch, capfd):
    monkeypatch.setattr(command_run, "POWER_OFF_SECONDS", 0.05)
    done = run(lambda machine: machine.channel(HELLO + exit_frame(3)))
    assert done.outcome == Outcome.power_off(3)
    assert "does not power off" in capfd.readouterr().err


def test_a_guest_that_still_writes_is_waited_for(run, monkeypatch, capfd):
    monkeypatch.setattr(command_run, "POWER_OFF_SECONDS", 0.02)

    def guest(machine):
        machine.busy = True
        machine.channel(HELLO + exit_frame(3))
        while machine.disk_requests < 5:
            time.sleep(0.005)
        powers_off(machine, 3)

    assert run(guest).outcome == Outcome.power_off(3)
    assert capfd.readouterr().err == ""


def test_a_missing_agent_is_noticed(run, monkeypatch, capfd):
    monkeypatch.setattr(exec_session, "AGENT_SECONDS", 0.05)
    said = []

    def noticed():
        said.append(capfd.readouterr().err)
        return "agent has not answered" in "".join(said)

    def guest(machine):
        until(noticed)
        machine.finish(Outcome.timeout(1))

    assert run(guest).outcome.status == 124


def test_an_agent_that_answers_is_not_missed(run, monkeypatch, capfd):
    monkeypatch.setattr(exec_session, "AGENT_SECONDS", 1)  # enough for a busy host to answer in

    def guest(machine):
        machine.channel(HELLO)
        time.sleep(1.1)
        powers_off(machine)

    run(guest)
    assert capfd.readouterr().err == ""


def test_json_keeps_only_so_much_output(run, monkeypatch):
    """A command that prints for ever must not fill the host's memory."""
    monkeypatch.setattr(command_run, "CAPTURE_BYTES", 8)
    much = encode(Kind.STDOUT, b"123456789", 1)
    done = run(lambda machine: machine.channel(HELLO + much))
    assert done.outcome.status == 125
    assert "stdout" in done.outcome.reason


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.IO_ERROR])
def test_a_guest_that_is_stopped_is_not_ended(run, monkeypatch, capfd, state):
    monkeypatch.setattr(command_run, "POWER_OFF_SECONDS", 0.02)

    def guest(machine):
        machine.status = state
        machine.channel(HELLO + exit_frame(3))
        time.sleep(0.2)
        powers_off(machine, 3)

    assert run(guest).outcome == Outcome.power_off(3)
    assert capfd.readouterr().err == ""


def test_a_guest_that_was_stopped_has_its_time_from_when_it_goes_on(run, monkeypatch, capfd):
    """Stopped and gone on between two looks."""
    monkeypatch.setattr(command_run, "POWER_OFF_SECONDS", 1)

    def guest(machine):
        machine.channel(HELLO + exit_frame(3))
        for _ in range(60):  # many between two looks, however busy the host is
            machine.resumes += 1
            time.sleep(0.02)
        powers_off(machine, 3)

    assert run(guest).outcome == Outcome.power_off(3)
    assert capfd.readouterr().err == ""
