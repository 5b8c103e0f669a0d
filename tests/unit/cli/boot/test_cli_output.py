"""The last lines of the guest's console after a run that failed."""

import pytest

from pykvm.cli.boot.output import CRASH_LINES, TAIL_LINES, ConsoleRecorder

BOOT = [f"boot {number}" for number in range(50)]
PANIC = "Kernel panic - not syncing: sysrq triggered crash"
OOPS = "BUG: kernel NULL pointer dereference, address: 0000000000000000"
REGISTERS = [f"R{number:02}: 0000000000000000" for number in range(30)]
TRACE = ["Call Trace:", " <TASK>", *(f" function_{number}+0x1/0x2" for number in range(30))]
END = f"---[ end {PANIC} ]---"


def tail(lines: list[str], capfd: pytest.CaptureFixture[str]) -> list[str]:
    recorder = ConsoleRecorder()
    for line in lines:
        recorder(line.encode() + b"\r\n")
    recorder.say_tail()
    head, *shown = capfd.readouterr().err.splitlines()
    assert head == "pykvm: the last lines of the guest's console:"
    return [line.removeprefix("  | ") for line in shown]


def test_the_last_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert tail(BOOT, capfd) == BOOT[-TAIL_LINES:]
    assert tail(BOOT[:3], capfd) == BOOT[:3]


@pytest.mark.parametrize(
    "crash",
    [
        [PANIC, *TRACE, END],
        [OOPS, "Oops: 0002 [#1] PREEMPT SMP", *REGISTERS, *TRACE, PANIC, END],
        ["general protection fault: 0000 [#1]", *REGISTERS, *TRACE, PANIC],
    ],
)
def test_a_crash_is_shown_from_its_message_to_its_call_trace(
    crash: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert tail([*BOOT, *crash], capfd) == crash


def test_a_short_crash_is_shown_with_the_lines_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert tail([*BOOT, "sysrq: Trigger a crash", PANIC], capfd) == [
        *BOOT[2 - TAIL_LINES :],
        "sysrq: Trigger a crash",
        PANIC,
    ]


def test_not_all_that_a_crash_says_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    lines = [PANIC] * 1000
    assert tail(lines, capfd) == lines[:CRASH_LINES]


def test_of_a_silent_guest_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    ConsoleRecorder().say_tail()
    assert capfd.readouterr().err == ""
