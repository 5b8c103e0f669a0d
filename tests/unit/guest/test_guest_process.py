"""Processes that run in a guest: their streams, signals and end."""

import signal

import pytest
from fake_guest import FakeCommand
from patience import ends, in_thread

import pykvm


@pytest.fixture
def started(fake):
    """A process, and its command in the guest."""
    one = fake()
    process = one.guest.popen("work")
    return process, one.command()


def test_lines_come_as_they_are_written(started) -> None:
    process, command = started
    lines = []
    thread = in_thread(lambda: lines.extend(process.stdout))
    for piece in (b"one\ntw", b"o", b"\n", b"\nlast"):
        command.prints(piece)
    command.ends()
    assert ends(thread)
    assert lines == [b"one\n", b"two\n", b"\n", b"last"]
    assert process.stdout.readline() == b""


def test_reads_of_a_size_and_of_what_is_there(started) -> None:
    process, command = started
    command.prints(b"abcdef")
    assert process.stdout.read(2) == b"ab"
    assert process.stdout.read(0) == b""
    assert process.stdout.read1() == b"cdef"
    command.prints(b"gh")
    with pytest.raises(pykvm.GuestTimeout, match="'work' has not written enough within 0 s"):
        process.stdout.read(3, timeout=0)
    command.ends()
    assert process.stdout.read(3) == b"gh", "a timeout loses nothing"
    assert process.stdout.read1() == process.stdout.read() == b""


def test_outputs_are_apart(started) -> None:
    process, command = started
    command.prints(b"out")
    command.prints(b"err", "stderr")
    command.ends()
    assert (process.stdout.read(), process.stderr.read()) == (b"out", b"err")


def test_the_guest_gets_credit_only_for_what_was_read(started) -> None:
    process, command = started
    assert command.request.manual_credit
    command.prints(bytes(1000))
    assert command.credit == [0, 0]
    process.stdout.read(300)
    assert command.credit == [300, 0]
    with pytest.raises(pykvm.GuestTimeout):
        process.stdout.read(2000, timeout=0)
    assert command.credit == [1000, 0], "who wants more than a window gets it"
    command.prints(bytes(1300))
    process.stdout.read(2000)
    assert command.credit == [2300, 0]


def test_a_wait_takes_the_rest_without_limit(started) -> None:
    process, command = started
    command.prints(b"read, ")
    process.stdout.read(6)
    command.prints(b"not read")
    results = []
    thread = in_thread(lambda: results.append(process.wait()))
    for _ in range(100):
        command.prints(b"!" * 10_000, "stderr")
    command.ends()
    assert ends(thread)
    assert results[0].stdout == b"not read"
    assert len(results[0].stderr) == 1_000_000
    assert process.wait().stdout == b""


def test_a_wait_that_takes_too_long_leaves_the_command(started) -> None:
    process, command = started
    with pytest.raises(pykvm.GuestTimeout):
        process.wait(timeout=0)
    assert command.signals == []
    assert process.status is None
    command.ends(2)
    assert process.status == 2
    with pytest.raises(pykvm.CommandFailed):
        process.wait()
    assert process.wait(check=False).status == 2


def test_the_end_of_the_block_kills_what_still_runs(started) -> None:
    process, command = started
    with process:
        pass
    assert command.signals == [signal.SIGKILL]
    command.ends(0, 9)
    with process:
        pass
    assert command.signals == [signal.SIGKILL]
    assert process.status == 137


def test_signals(started) -> None:
    process, command = started
    process.send_signal(signal.SIGTERM)
    for wrong in (0, 65, "TERM"):
        with pytest.raises(pykvm.UsageError, match=r"^number cannot be"):
            process.send_signal(wrong)
    command.ends()
    process.kill()
    assert command.signals == [signal.SIGTERM]


def test_input(started) -> None:
    process, command = started
    process.stdin.write(b"a")
    process.stdin.write(memoryview(b"b"))
    command.has_room = False
    process.stdin.write(b"c")
    with pytest.raises(pykvm.GuestTimeout, match="has not read its input"):
        process.stdin.write(b"d", timeout=0)
    command.events.room()
    process.stdin.write(b"e")
    with pytest.raises(pykvm.UsageError, match=r"^data cannot be"):
        process.stdin.write("text")
    command.ends()
    with pytest.raises(pykvm.GuestError, match="'work' ended before it had read its input"):
        process.stdin.write(b"f")
    process.stdin.close()
    assert (command.sent, command.ended_input) == (b"abce", True)


def test_a_guest_that_ends_ends_the_streams(fake) -> None:
    one = fake()
    process = one.guest.popen("work")
    command: FakeCommand = one.command()
    command.prints(b"a line\nhalf")
    one.guest.close()
    assert process.stdout.readline() == b"a line\n"
    for call in (process.stdout.readline, process.stderr.read, process.wait):
        with pytest.raises(pykvm.GuestDied, match="the guest was closed, during 'work'"):
            call()
    with pytest.raises(pykvm.GuestDied):
        process.stdin.write(b"x")
    process.kill()
    assert command.signals == []


def test_processes_explain_themselves(started) -> None:
    process, command = started
    assert repr(process) == "<Process 'work': runs>"
    command.ends(1)
    assert repr(process) == "<Process 'work': status 1>"


def test_a_process_that_nobody_reads_any_more_can_end(fake) -> None:
    one = fake()
    with one.guest.popen("yes") as process:
        command = one.command()
        command.prints(bytes(1000))
        command.prints(bytes(10), "stderr")
        assert command.credit == [0, 0]
    assert command.credit == [1000, 10]
    command.prints(bytes(500))
    assert command.credit == [1500, 10]
    command.ends(0, 9)
    assert process.wait(check=False).stdout == b""


def test_what_an_ended_process_wrote_outlives_its_block(started) -> None:
    process, command = started
    with process:
        command.prints(b"all")
        command.ends()
    assert process.wait().stdout == b"all"


def test_a_read_of_too_much_is_an_error_and_loses_nothing(started, monkeypatch) -> None:
    process, command = started
    monkeypatch.setattr("pykvm.guest.process.MOST_KEPT", 1 << 20)
    command.prints(bytes(1 << 20))
    for call in (process.stdout.read, process.stdout.readline):
        with pytest.raises(pykvm.GuestError, match="'work' wrote more than 1 MiB to stdout"):
            call()
    assert len(process.stdout.read1()) == 1 << 20


def test_a_write_after_the_end_of_the_input_is_refused(started) -> None:
    process, command = started
    process.stdin.close()
    process.stdin.close()
    with pytest.raises(pykvm.UsageError, match="the input of 'work' is closed"):
        process.stdin.write(b"x")
    assert command.sent == b""


def test_whoever_asks_is_told_of_each_command(fake) -> None:
    one = fake()
    told: list[pykvm.Process] = []
    one.guest.on_command = told.append
    process = one.guest.popen("work")
    assert told == [process]
    assert process.seconds >= 0


def test_the_time_of_a_command_ends_with_it(started) -> None:
    process, command = started
    command.ends()
    assert process.seconds == process.wait().seconds == process.seconds
