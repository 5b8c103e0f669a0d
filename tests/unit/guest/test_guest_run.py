"""Guest.run and its errors, with an agent that does what a test says."""

import signal
import threading

import pytest
from fake_guest import BARE, FakeCommand
from patience import ends, in_thread, until

import pykvm
from pykvm.guest.running import MOST_KEPT
from pykvm.machine.outcome import Outcome, OutcomeKind


def caught(kind, call, *arguments, **options):
    """The exception of ``kind`` that the call raises in a new thread, which has to end."""
    errors = []

    def run() -> None:
        try:
            call(*arguments, **options)
        except kind as error:
            errors.append(error)

    thread = in_thread(run)
    return thread, errors


def test_a_result_has_everything_about_the_command(fake) -> None:
    one = fake()

    def respond(command: FakeCommand) -> None:
        command.prints(b"out\n\n")
        command.prints(b"err", "stderr")
        command.ends()

    one.answers(respond)
    result = one.guest.run("hello")
    assert (result.status, result.signal, result.command) == (0, 0, "hello")
    assert (result.stdout, result.stderr, result.text) == (b"out\n\n", b"err", "out")
    assert result.seconds >= 0
    request = one.command().request
    assert (request.command, request.env, request.cwd, request.stdin) == (b"hello", (), b"", False)
    assert one.command().signals == []


def test_arguments_reach_the_agent(fake) -> None:
    one = fake()
    one.answers(lambda command: command.ends())
    one.guest.run(["ls", b"\xff"], env={"A": "ä"}, cwd="/tmp", input=b"data")
    command = one.command()
    assert command.request.command == (b"ls", b"\xff")
    assert command.request.env == ((b"A", "ä".encode()),)
    assert command.request.cwd == b"/tmp"
    assert command.request.stdin


def test_input_is_sent_with_its_end_while_the_command_has_room(fake) -> None:
    one = fake()
    data = bytes(range(256)) * 1000
    one.answers(lambda command: setattr(command, "has_room", False))
    results = []
    thread = in_thread(lambda: results.append(one.guest.run("cat", input=data)))
    command = one.command()
    for sent in range(1 << 16, len(data), 1 << 16):
        until(lambda sent=sent: len(command.sent) == sent)
        command.events.room()
    until(lambda: command.ended_input)
    command.ends()
    assert ends(thread)
    assert command.sent == data
    assert results[0].status == 0


def test_a_command_that_reads_none_of_its_input_is_no_error(fake) -> None:
    one = fake()

    def respond(command: FakeCommand) -> None:
        command.has_room = False
        command.ends()

    one.answers(respond)
    assert one.guest.run("true", input=bytes(1 << 20)).status == 0


def test_a_status_other_than_0_is_an_error_with_both_outputs(fake) -> None:
    one = fake()

    def respond(command: FakeCommand) -> None:
        command.prints(b"half\n")
        command.prints(b"no \x1b[31mdisk\n", "stderr")
        command.ends(3)

    one.answers(respond)
    with pytest.raises(pykvm.CommandFailed) as failed:
        one.guest.run(["mkfs", "/dev/vda"])
    assert failed.value.result.status == 3
    assert str(failed.value).splitlines() == [
        "'mkfs /dev/vda' ended with status 3",
        "--- stdout, the end ---",
        "half",
        "--- stderr, the end ---",
        "no \\x1b[31mdisk",
    ]
    assert one.guest.run("again", check=False).status == 3


def test_a_signal_is_told(fake) -> None:
    one = fake()
    one.answers(lambda command: command.ends(0, 9))
    with pytest.raises(pykvm.CommandFailed, match="'x' ended by signal 9") as failed:
        one.guest.run("x")
    assert (failed.value.result.status, failed.value.result.signal) == (137, 9)


def test_a_command_that_takes_too_long_is_killed_and_the_guest_lives(fake) -> None:
    one = fake()

    def respond(command: FakeCommand) -> None:
        command.prints(b"until here\n")

    one.answers(respond)
    one.machine.console(b"a line\r\n")
    with pytest.raises(pykvm.GuestTimeout, match="'sleep 9' has not ended within 0 s") as late:
        one.guest.run("sleep 9", timeout=0)
    assert "until here" in str(late.value)
    assert late.value.console == "a line"
    assert one.command().signals == [signal.SIGKILL]
    assert one.guest.outcome is None


def test_an_interrupt_kills_the_command_and_the_guest_lives(fake, monkeypatch) -> None:
    one = fake()

    def interrupt(command: FakeCommand) -> None:
        waiting = command.events.changed
        monkeypatch.setattr(waiting, "wait", raise_interrupt)

    def raise_interrupt(timeout: float) -> bool:
        raise KeyboardInterrupt

    one.answers(interrupt)
    with pytest.raises(KeyboardInterrupt):
        one.guest.run("sleep 9")
    assert one.command().signals == [signal.SIGKILL]
    one.answers(lambda command: command.ends())
    assert one.guest.run("true").status == 0


def test_a_guest_that_dies_fails_every_call_at_once(fake) -> None:
    one = fake()
    guest = one.guest
    calls = [
        caught(pykvm.GuestDied, guest.run, "first"),
        caught(pykvm.GuestDied, guest.run, "second", input=b"data"),
        caught(pykvm.GuestDied, guest.console.wait_for, "never"),
    ]
    one.command(1)
    one.machine.console(b"Oops\r\n")
    one.machine.finish(Outcome.panic("Kernel panic - not syncing: why"))
    for thread, errors in calls:
        assert ends(thread)
        assert errors[0].outcome.kind is OutcomeKind.PANIC
        assert errors[0].console == "Oops"
        assert str(errors[0]).startswith("Kernel panic - not syncing: why, during ")
    assert guest.wait().kind is OutcomeKind.PANIC
    with pytest.raises(pykvm.GuestDied, match="the guest's run is over: Kernel panic"):
        guest.run("third")
    with pytest.raises(pykvm.GuestDied, match="during a write to its console"):
        guest.console.write("x")


def test_a_command_that_cannot_start_is_an_error_of_its_own(fake) -> None:
    one = fake()
    one.answers(lambda command: command.events.failed("/nowhere: No such file or directory"))
    with pytest.raises(pykvm.GuestError) as failed:
        one.guest.run(["/nowhere"])
    assert str(failed.value) == "'/nowhere' failed: /nowhere: No such file or directory"
    assert type(failed.value) is pykvm.GuestError


def test_an_agent_that_makes_no_sense_ends_the_guest(fake) -> None:
    one = fake()
    thread, errors = caught(pykvm.GuestDied, one.guest.run, "x")
    one.command()
    one.client.events.failed("bad frame")
    assert ends(thread)
    assert errors[0].outcome.kind is OutcomeKind.ERROR
    assert "the guest's agent failed: bad frame" in str(errors[0])


def test_a_bug_in_pykvm_is_the_cause_of_the_error(fake) -> None:
    one = fake()
    one.machine.bug = ZeroDivisionError("a bug")
    thread, errors = caught(pykvm.GuestDied, one.guest.run, "x")
    one.command()
    one.machine.finish(Outcome.error("a bug"))
    assert ends(thread)
    assert errors[0].__cause__ is one.machine.bug
    one.guest.close()
    assert one.machine.log == ["close"]


def test_output_without_end_is_an_error_and_the_command_is_killed(fake) -> None:
    one = fake()
    piece = bytes(MOST_KEPT // 2)

    def respond(command: FakeCommand) -> None:
        for _ in range(3):
            command.prints(piece, "stderr")

    one.answers(respond)
    with pytest.raises(pykvm.GuestError, match="'yes' wrote more than 64 MiB to stderr"):
        one.guest.run("yes")
    assert signal.SIGKILL in one.command().signals


def test_a_guest_without_an_agent_says_so(fake) -> None:
    one = fake(BARE)
    for call in (one.guest.run, one.guest.popen):
        with pytest.raises(pykvm.UsageError, match="has no agent, so it cannot run commands"):
            call("x")
    with pytest.raises(pykvm.UsageError, match="has no agent, so it cannot be asked to power off"):
        one.guest.power_off()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"command": 3}, "command"),
        ({"command": []}, "command"),
        ({"command": ["ls", 1]}, "command"),
        ({"command": "x", "input": "text"}, "input"),
        ({"command": "x", "timeout": -1}, "timeout"),
        ({"command": "x", "timeout": "9"}, "timeout"),
        ({"command": "x", "timeout": float("nan")}, "timeout"),
        ({"command": "x", "env": {"A": 1}}, "env"),
        ({"command": "x", "env": {"A=": "1"}}, "env"),
        ({"command": "x", "env": ["A=1"]}, "env"),
        ({"command": "x", "cwd": 1}, "cwd"),
    ],
)
def test_each_bad_argument_is_named(fake, options, name) -> None:
    one = fake()
    with pytest.raises(pykvm.UsageError, match=f"^{name} cannot be "):
        one.guest.run(options.pop("command"), **options)
    assert one.client.commands == []


def test_many_threads_run_commands_at_once(fake) -> None:
    one = fake()
    together = threading.Barrier(4)
    results = []

    def respond(command: FakeCommand) -> None:
        together.wait()
        command.prints(command.request.command)
        command.ends()

    one.answers(respond)
    threads = [
        in_thread(lambda name=name: results.append((name, one.guest.run(name).text)))
        for name in "abcd"
    ]
    assert all(map(ends, threads))
    assert sorted(results) == [(name, name) for name in "abcd"]
