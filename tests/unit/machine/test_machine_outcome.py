"""The outcome of a run, and the evidence for it."""

import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.machine.outcome import ConsoleWatch, Outcome, OutcomeKind, judge

LINE = b"Kernel panic - not syncing: VFS: Unable to mount root fs"
TEXT = LINE.decode()


def watch(*pieces):
    console = ConsoleWatch()
    for piece in pieces:
        console.feed(piece)
    return console.panic_line


@pytest.mark.parametrize(
    ("outcome", "kind", "status"),
    [
        (Outcome.power_off(3), OutcomeKind.POWER_OFF, 3),
        (Outcome.power_off(256 + 7), OutcomeKind.POWER_OFF, 7),
        (Outcome.reset("i8042"), OutcomeKind.RESET, 0),
        (Outcome.halted(), OutcomeKind.HALTED, 0),
        (Outcome.panic(), OutcomeKind.PANIC, 126),
        (Outcome.triple_fault(), OutcomeKind.TRIPLE_FAULT, 126),
        (Outcome.timeout(1.5), OutcomeKind.TIMEOUT, 124),
        (Outcome.signalled(signal.SIGTERM), OutcomeKind.SIGNALLED, 143),
        (Outcome.signalled(signal.SIGHUP), OutcomeKind.SIGNALLED, 129),
        (Outcome.signalled(60), OutcomeKind.SIGNALLED, 188),
        (Outcome.quit(), OutcomeKind.QUIT, 0),
        (Outcome.error("no"), OutcomeKind.ERROR, 125),
    ],
)
def test_each_outcome_has_its_exit_status(outcome, kind, status):
    assert (outcome.kind, outcome.status) == (kind, status)


def test_the_reason_names_the_event():
    assert Outcome.signalled(signal.SIGINT).reason == "ended by SIGINT"
    assert Outcome.timeout(1.5).reason == "the run was ended after 1.5 seconds"
    assert Outcome.panic(TEXT).reason == TEXT


@pytest.mark.parametrize(
    ("event", "exit_status", "panicked", "line", "kind", "status"),
    [
        (Outcome.reset(), None, False, None, OutcomeKind.RESET, 0),
        (Outcome.halted(), None, False, None, OutcomeKind.HALTED, 0),
        (Outcome.triple_fault(), None, False, None, OutcomeKind.TRIPLE_FAULT, 126),
        (Outcome.reset(), None, False, TEXT, OutcomeKind.PANIC, 126),
        (Outcome.halted(), None, False, TEXT, OutcomeKind.PANIC, 126),
        (Outcome.reset(), None, True, None, OutcomeKind.PANIC, 126),
        (Outcome.triple_fault(), None, True, TEXT, OutcomeKind.PANIC, 126),
        (Outcome.power_off(3), 3, False, TEXT, OutcomeKind.POWER_OFF, 3),
        (Outcome.reset(), 3, True, TEXT, OutcomeKind.POWER_OFF, 3),
        (Outcome.timeout(1), None, True, TEXT, OutcomeKind.TIMEOUT, 124),
        (Outcome.quit(), None, False, TEXT, OutcomeKind.QUIT, 0),
        (Outcome.signalled(15), None, False, TEXT, OutcomeKind.SIGNALLED, 143),
        (Outcome.error("x"), None, True, TEXT, OutcomeKind.ERROR, 125),
    ],
)
def test_the_strongest_evidence_decides(event, exit_status, panicked, line, kind, status):
    end = judge(event, exit_status=exit_status, panicked=panicked, console_line=line)
    assert (end.kind, end.status) == (kind, status)
    if kind is OutcomeKind.PANIC and line:
        assert end.reason == TEXT


def test_pvpanic_takes_its_reason_from_the_console():
    end = judge(Outcome.panic(), exit_status=None, panicked=True, console_line=TEXT)
    assert end == Outcome.panic(TEXT)
    end = judge(Outcome.panic(), exit_status=None, panicked=True, console_line=None)
    assert end == Outcome.panic()


def test_the_watch_finds_the_line_of_a_panic():
    assert watch(b"hello\r\n[    1.25] " + LINE + b"\r\nCPU: 0\r\n") == TEXT
    assert watch(b"/ # [    1.25] " + LINE) == TEXT, "after a prompt, its line not yet at an end"
    assert watch(b"nothing here\n") is None


def test_the_end_of_the_report_does_not_replace_the_line():
    report = LINE + b"\r\nCPU: 0\r\n---[ end " + LINE + b" ]---\r\n"
    assert watch(report) == TEXT
    assert watch(*(bytes((byte,)) for byte in report)) == TEXT


def test_the_last_panic_counts():
    assert watch(b"Kernel panic - not syncing: first\n" + LINE + b"\n") == TEXT


def test_an_orderly_restart_drops_the_line():
    assert watch(LINE + b"\n# reboot\n[   9.1] reboot: Restarting system\n") is None
    assert watch(b"reboot: Restarting system\n", LINE, b"\n") == TEXT


def test_the_memory_of_the_watch_is_bounded():
    console = ConsoleWatch()
    for _ in range(100):
        console.feed(b"x" * 10_000)
    console.feed(LINE + b"y" * 10_000)
    console.feed(b"z" * 10_000)
    line = console.panic_line
    assert line is not None
    assert line.startswith(TEXT)
    assert len(line) == 512


noise = st.lists(
    st.sampled_from(
        [
            LINE,
            b"\n",
            b"---[ end ",
            b"reboot: ",
            b"Kernel panic - not sync",
            b"Kernel ",
            b"x" * 300,
            b"\xff",
        ]
    ),
    max_size=12,
).map(b"".join)


@given(noise, st.lists(st.integers(0, 3000), max_size=8))
def test_any_pieces_give_the_same_line(text, cuts):
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    bytewise = [bytes((byte,)) for byte in text]
    assert watch(*pieces) == watch(text) == watch(*bytewise)


def test_a_panic_line_cannot_drive_a_terminal():
    console = ConsoleWatch()
    console.feed(TEXT.encode() + b": \x1b[2J\x07 gone\n")
    assert console.panic_line == TEXT + r": \x1b[2J\x07 gone"
