"""The legal survivors of a power cut, against a slow reference."""

from collections.abc import Callable

import pytest
from crash_logs import SECTORS, base, legal_contents, random_log, sector_data
from hypothesis import given
from hypothesis import strategies as st

from pykvm.crash import model as model_module
from pykvm.crash.model import Frontier, Model, Rules, Tear
from pykvm.crash.states import State
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind, WriteLog

ALL_RULES = [Rules(model, tear) for model in Model for tear in Tear]


def contents(frontier: Frontier) -> set:
    if frontier.rules.model is Model.PREFIX:
        chosen = [(1 << length) - 1 for length in range(len(frontier.pieces) + 1)]
    else:
        chosen = range(1 << len(frontier.pieces))
    return {frozenset(State(frontier, kept).content().items()) for kept in chosen}


def differs(seed: int, rules: Rules, cut: int) -> bool:
    log = random_log(seed)
    cut %= log.events + 1
    return contents(Frontier(log, cut, rules)) != legal_contents(log, cut, rules.model, rules.tear)


@given(st.integers(0, 1 << 32), st.sampled_from(ALL_RULES), st.integers(0, 1 << 16))
def test_the_survivors_are_those_of_the_specification(seed, rules, cut):
    assert not differs(seed, rules, cut)


def _stable_if(rule: Callable) -> Callable:
    """A mutant of the module's ``_stability``."""

    def mutant(log: WriteLog, cut: int, model: Model) -> Callable[[Entry], bool]:
        flushes = [e for e in log.entries if e.kind is WriteKind.FLUSH]
        return lambda entry: rule(entry, flushes, cut)

    return mutant


def _writes(entry: Entry) -> bool:
    return entry.kind in (WriteKind.WRITE, WriteKind.ZEROES)


MUTANTS = {
    "a flush covers what had ended when it began": _stable_if(
        lambda e, flushes, cut: (
            _writes(e)
            and e.ended < cut
            and (e.durable or any(f.ended < cut and e.ended < f.began for f in flushes))
        )
    ),
    "a flush covers what had begun when it was sent": _stable_if(
        lambda e, flushes, cut: (
            _writes(e)
            and e.ended < cut
            and (e.durable or any(f.ended < cut and e.began < f.sent for f in flushes))
        )
    ),
    "a flush counts before its end": _stable_if(
        lambda e, flushes, cut: (
            _writes(e)
            and e.ended < cut
            and (e.durable or any(f.began < cut and e.ended < f.sent for f in flushes))
        )
    ),
    "a durable write is stable before its end": _stable_if(
        lambda e, flushes, cut: (
            _writes(e)
            and (
                e.durable
                or (e.ended < cut and any(f.ended < cut and e.ended < f.sent for f in flushes))
            )
        )
    ),
    "no write is durable": _stable_if(
        lambda e, flushes, cut: (
            _writes(e)
            and e.ended < cut
            and any(f.ended < cut and e.ended < f.sent for f in flushes)
        )
    ),
    "a discard is a write of zeros": _stable_if(
        lambda e, flushes, cut: (
            e.sectors > 0
            and e.ended < cut
            and (e.durable or any(f.ended < cut and e.ended < f.sent for f in flushes))
        )
    ),
    "an end is stable": _stable_if(lambda e, flushes, cut: _writes(e) and e.ended < cut),
    "nothing is stable": _stable_if(lambda e, flushes, cut: False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_rule_is_noticed(mutant, monkeypatch):
    monkeypatch.setattr(model_module, "_stability", MUTANTS[mutant])
    assert any(differs(seed, Rules(tear=Tear.SECTOR), 7919 * seed) for seed in range(500))


@given(st.integers(0, 1 << 32), st.sampled_from(ALL_RULES), st.integers(0, 1 << 16))
def test_leaving_out_sectors_with_one_content_changes_no_survivor(seed, rules, cut):
    log = random_log(seed)
    cut %= log.events + 1

    def seen(frontier: Frontier) -> set:
        whole = [dict(one) for one in contents(frontier)]
        return {tuple(one.get(s, base(s)) for s in range(SECTORS)) for one in whole}

    assert seen(Frontier(log, cut, rules, base)) == seen(Frontier(log, cut, rules))


def test_a_rewrite_of_the_same_bytes_cannot_matter():
    same = Entry(WriteKind.WRITE, 0, 1, sector=3, sectors=1, data=base(3))
    assert Frontier(WriteLog(SECTORS, [same]), 2, Rules(tear=Tear.SECTOR), base).pieces == ()


def test_a_lost_piece_of_4096_bytes_is_aligned():
    data = b"".join(map(sector_data, range(10)))
    write = Entry(WriteKind.WRITE, 0, NEVER, sector=4, sectors=10, data=data)
    pieces = Frontier(WriteLog(SECTORS, [write]), 1, Rules(tear=Tear.BLOCK)).pieces
    assert [piece.sectors for piece in pieces] == [(4, 5, 6, 7), tuple(range(8, 14))]


def test_an_impossible_survivor_is_refused():
    log = WriteLog(SECTORS, [Entry(WriteKind.ZEROES, 0, NEVER, sector=0, sectors=3)])
    assert Frontier(log, 1, Rules(tear=Tear.SECTOR)).survivors == 8
    assert Frontier(log, 1, Rules(Model.PREFIX, Tear.SECTOR)).survivors == 4
    with pytest.raises(ValueError, match="3 pieces"):
        Frontier(log, 1, Rules(tear=Tear.SECTOR)).changes(8)
    with pytest.raises(ValueError, match="gaps"):
        Frontier(log, 1, Rules(Model.PREFIX, Tear.SECTOR)).changes(0b101)
    with pytest.raises(ValueError, match="no cut 2"):
        Frontier(log, 2, Rules(tear=Tear.SECTOR))


WRITE = Entry(WriteKind.WRITE, 1, 4, sector=3, sectors=1, data=bytes(512))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([Entry(WriteKind.FLUSH, -1, 2)], "begin after the one before"),
        ([WRITE, Entry(WriteKind.FLUSH, 0, 2)], "begin after the one before"),
        ([Entry(WriteKind.FLUSH, 2, 1)], "ends before"),
        ([Entry(WriteKind.FLUSH, 2, 2)], "ends before"),
        ([Entry(WriteKind.MARK, 2, 3)], "ends before"),
        ([Entry(WriteKind.FLUSH, 2, 4, sent=3)], "sent after"),
        ([Entry(WriteKind.FLUSH, 2, 4, sectors=1)], "has sectors"),
        ([Entry(WriteKind.ZEROES, 2, 4, sectors=17)], "beyond the end"),
        ([Entry(WriteKind.ZEROES, 2, 4)], "beyond the end"),
        ([Entry(WriteKind.WRITE, 2, 4, sectors=1)], "different size"),
        ([WRITE, Entry(WriteKind.FLUSH, 2, 4)], "a different entry"),
    ],
)
def test_a_log_that_contradicts_itself_is_refused(entries, reason):
    with pytest.raises(ValueError, match=reason):
        WriteLog(SECTORS, entries)
