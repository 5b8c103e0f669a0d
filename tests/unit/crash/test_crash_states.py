"""The choice of states, their ids, and the smallest failing one."""

from collections import Counter

import pytest
from crash_logs import SECTORS, base, legal_contents, random_log, sector_data
from hypothesis import given
from hypothesis import strategies as st

from pykvm.crash.minimise import minimise
from pykvm.crash.model import Frontier, Model, Rules, Tear
from pykvm.crash.states import Coverage, Cuts, State, cuts, state_of, states
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind, WriteLog
from pykvm.errors import UsageError

VIRTIO = Rules(tear=Tear.SECTOR)


def log_of(*requests: tuple) -> WriteLog:
    """A log of requests that end before the next one is sent: sectors to write, or "flush"."""
    made, event = [], 0
    for request in requests:
        if request == "flush":
            made.append(Entry(WriteKind.FLUSH, event, event + 1, event))
        elif isinstance(request, str):
            made.append(Entry(WriteKind.MARK, event, event, event, label=request))
            event -= 1
        else:
            first, count = request
            data = b"".join(sector_data(100 * event + n) for n in range(count))
            made.append(
                Entry(
                    WriteKind.WRITE,
                    event,
                    event + 1,
                    event,
                    sector=first,
                    sectors=count,
                    data=data,
                )
            )
        event += 2
    return WriteLog(SECTORS, made)


def whole(state: State) -> tuple:
    content = state.content()
    return tuple(content.get(sector, base(sector)) for sector in range(SECTORS))


@given(st.integers(0, 1 << 32), st.sampled_from(list(Model)), st.sampled_from(list(Tear)))
def test_without_a_bound_each_legal_content_is_chosen_once(seed, model, tear):
    log = random_log(seed, most=4)
    coverage = Coverage()
    chosen = states(
        log,
        cuts(log, Cuts.REQUEST),
        Rules(model, tear),
        most=1 << 20,
        seed=1,
        base=base,
        coverage=coverage,
    )
    found = [(len(state.frontier.marks), whole(state)) for state in chosen]
    assert len(found) == len(set(found)) == coverage.chosen
    assert coverage.complete
    legal = set()
    for cut in range(log.events + 1):
        marks = len(Frontier(log, cut, VIRTIO).marks)
        for one in legal_contents(log, cut, model, tear):
            content = dict(one)
            legal.add((marks, tuple(content.get(s, base(s)) for s in range(SECTORS))))
    assert set(found) == legal


@given(st.integers(0, 1 << 32), st.integers(1, 30))
def test_a_bound_holds_and_equal_seeds_give_equal_states(seed, most):
    log = random_log(seed)

    def names() -> tuple[list[str], bool]:
        coverage = Coverage()
        at = cuts(log, Cuts.FLUSH)
        chosen = states(log, at, VIRTIO, most=most, seed=3, coverage=coverage)
        return [state.id for state in chosen], coverage.complete

    first, complete = names()
    assert len(first) <= most
    assert len(first) == most or complete
    assert (first, complete) == names()


def test_rewrites_of_one_sector_end_when_nothing_new_comes():
    log = log_of(*[(3, 1)] * 30)
    coverage = Coverage()
    found = list(states(log, [log.events], VIRTIO, most=100, seed=1, base=base, coverage=coverage))
    assert len(found) == 31
    assert not coverage.complete


def test_cuts_share_the_states_and_leave_what_they_do_not_need():
    log = log_of((0, 1), "flush", (1, 16 - 1), "flush", (2, 14), "flush")
    found = list(states(log, cuts(log, Cuts.FLUSH), VIRTIO, most=101, seed=1))
    by_cut = Counter(state.frontier.cut for state in found)
    assert by_cut == {3: 2, 7: 49, 11: 50}


def test_many_volatile_sectors_are_sampled_without_end_or_repeats():
    log = log_of((0, 16))
    found = list(states(log, [2], VIRTIO, most=500, seed=1))
    assert len({state.id for state in found}) == 500
    assert [state.lost for state in found[:4]] == [0, 16, 1, 15]


@given(st.integers(0, 1 << 32), st.sampled_from(list(Model)), st.sampled_from(list(Tear)))
def test_an_id_gives_the_same_state(seed, model, tear):
    log = random_log(seed)
    chosen = states(log, cuts(log, Cuts.FLUSH), Rules(model, tear), most=20, seed=1, base=base)
    for state in chosen:
        again = state_of(random_log(seed), state.id, base)
        assert (again.id, again.content()) == (state.id, state.content())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name: "", "is not the id"),
        (lambda name: name + "-1", "is not the id"),
        (lambda name: name.replace("virtio", "sata"), "is not the id"),
        (lambda name: "0" + name[1:] if name[0] != "0" else "1" + name[1:], "a different log"),
        (lambda name: name.replace("-2-", "-3-"), "no cut 3"),
        (lambda name: name + "0", "1 pieces"),
        (lambda name: name[:-1] + "0x1", "is not the id"),
        (lambda name: name[:-1] + "01", "is not the id"),
    ],
)
def test_a_wrong_id_is_refused(change, reason):
    log = log_of((0, 1))
    name = State(Frontier(log, 2, VIRTIO), 1).id
    with pytest.raises(UsageError, match=reason):
        state_of(log, change(name))


def test_cuts_are_at_flushes_marks_or_events():
    log = log_of((0, 1), "flush", "a mark", (1, 1))
    assert cuts(log, Cuts.FLUSH) == [3, 7]
    assert cuts(log, Cuts.MARK) == [5, 7]
    assert cuts(log, Cuts.REQUEST) == list(range(8))
    unfinished = WriteLog(SECTORS, [Entry(WriteKind.FLUSH, 0, NEVER)])
    assert cuts(unfinished, Cuts.FLUSH) == [1]


@given(st.integers(0, 1 << 32))
def test_the_cuts_at_flushes_have_every_content_of_all_cuts(seed):
    log = random_log(seed, most=4)
    found = [
        {whole(one) for one in states(log, cuts(log, at), VIRTIO, most=1 << 20, seed=1, base=base)}
        for at in (Cuts.FLUSH, Cuts.REQUEST)
    ]
    assert found[0] == found[1]


def test_the_smallest_failing_state_loses_only_the_necessary_pieces_at_the_earliest_cut():
    log = log_of((0, 4), (4, 4), "flush", (8, 1), "flush", (9, 4), "flush")

    def fails(state: State) -> bool:
        content = state.content()
        return 4 in content and 1 not in content and 5 not in content

    at = cuts(log, Cuts.REQUEST)
    state = State(Frontier(log, 5, VIRTIO), 1 << 4)
    assert fails(state)
    smallest = minimise(state, fails, at)
    lost = [
        s
        for n, p in enumerate(smallest.frontier.pieces)
        for s in p.sectors
        if not smallest.kept >> n & 1
    ]
    assert sorted(lost) == [1, 5]
    assert smallest.frontier.cut == 3


def test_a_smallest_state_is_found_within_the_number_of_tries():
    log = log_of((0, 16))
    calls = []

    def fails(state: State) -> bool:
        calls.append(state.id)
        return state.lost >= 3

    smallest = minimise(State(Frontier(log, 2, VIRTIO), 0), fails, [2], tries=7)
    assert len(calls) == 7
    assert smallest.lost >= 3


def test_the_smallest_prefix_has_no_gaps():
    log = log_of((0, 8))
    prefix = Rules(Model.PREFIX, Tear.SECTOR)
    smallest = minimise(
        State(Frontier(log, 2, prefix), 0), lambda state: 5 not in state.content(), [2]
    )
    assert smallest.kept == 0b11111
