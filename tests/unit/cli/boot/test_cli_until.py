"""``--until``: a text on the console ends the run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.boot.until import Until
from pykvm.errors import UsageError
from pykvm.machine.outcome import Outcome, OutcomeKind

OFF = Outcome.power_off(0)


class Ended:
    """A machine that notes how it was finished."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def watch(pattern: str, *pieces: bytes) -> tuple[Until, list[Outcome]]:
    machine = Ended()
    until = Until(pattern, machine)  # type: ignore[arg-type]
    for piece in pieces:
        until(piece)
    return until, machine.outcomes


@given(st.lists(st.integers(1, 5), max_size=30))
def test_the_pieces_of_the_output_do_not_matter(sizes: list[int]):
    text, pieces = b"first\r\nlogin: \xff", []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    _, outcomes = watch(r"^login", *pieces, text)
    (outcome,) = outcomes
    assert (outcome.kind, outcome.status) == (OutcomeKind.QUIT, 0)
    assert outcome.reason == "the console showed '^login'"


def test_the_end_of_a_line_is_that_of_a_complete_one():
    assert watch("^ok$", b"o", b"k", b"ay\n")[1] == []
    assert len(watch("^ok$", b"o", b"k", b"\r\n")[1]) == 1


def test_only_one_line_is_searched_at_a_time():
    assert watch("a.*b", b"a\nb\n")[1] == []


def test_the_run_ends_once():
    assert len(watch("x", b"x\nx\n", b"x")[1]) == 1


def test_a_long_line_is_cut():
    assert watch("x", b"a" * 4096 + b"x\n", b"x")[1] != []
    assert watch("x", b"a" * 5000, b"x\n")[1] == []


@pytest.mark.parametrize(
    "end", [OFF, Outcome.reset(), Outcome.halted(), Outcome.panic(), Outcome.triple_fault()]
)
def test_a_guest_that_ends_at_once_has_shown_its_text(end: Outcome):
    assert watch("x", b"x")[0].outcome(end).status == 0


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (OFF, 125),
        (Outcome.reset(), 125),
        (Outcome.panic(), 126),
        (Outcome.timeout(3), 124),
        (Outcome.signalled(15), 143),
        (Outcome.quit(), 125),
    ],
)
def test_the_status_without_the_text(end: Outcome, status: int):
    assert watch("x", b"y\n")[0].outcome(end).status == status


def test_a_wrong_pattern():
    with pytest.raises(UsageError, match="no regular expression"):
        watch("(")
