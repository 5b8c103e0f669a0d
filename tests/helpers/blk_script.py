"""Scripts for the contract: requests in drains, what is wrong with the host, and decisions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from blk_requests import FLUSH, IN, OUT
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.core.planner import Limits
from pykvm.devices.virtio_blk.modes import ErrorAction, MergePolicy

SECTOR = 512
SECTORS = 16
LONGEST = 4 * SECTOR


@dataclass(frozen=True)
class Item:
    """A request. ``place`` -1: where the one before it ends; ``cut``: bytes per segment.

    ``rude``: sent even if it conflicts with an unanswered request of an earlier drain.
    """

    kind: int
    place: int
    sectors: int
    cut: int
    rude: bool


@dataclass(frozen=True)
class Script:
    """Requests in drains, what is wrong with the host, and a tape of decisions."""

    drains: Sequence[Sequence[Item]]
    tape: bytes
    policy: MergePolicy
    limits: Limits
    actions: dict[int, ErrorAction]
    bad: dict[int, frozenset[int]]
    repaired_after: int
    durable: bool = False


kinds = st.sampled_from([IN, IN, IN, OUT, OUT, OUT, OUT, FLUSH])
items = st.builds(
    Item,
    kinds,
    st.one_of(st.just(-1), st.integers(0, SECTORS - 1)),
    st.sampled_from([1, 1, 1, 2, 4]),
    st.sampled_from([LONGEST, LONGEST, 512, 300]),
    st.sampled_from([False] * 7 + [True]),
)


@st.composite
def streaks(draw: st.DrawFn) -> list[Item]:
    """Requests of one direction that mostly follow each other."""
    first = draw(items)
    return [first] + [Item(first.kind, -1, 1, LONGEST, False)] * draw(st.integers(0, 5))


few_sectors = st.frozensets(st.integers(0, SECTORS - 1), max_size=2)
drains = st.lists(st.one_of(streaks(), st.lists(items, max_size=3)), min_size=1, max_size=4).map(
    lambda parts: list(chain.from_iterable(parts))
)
actions = st.sampled_from([*ErrorAction, ErrorAction.STOP])
limits = st.one_of(
    st.just(Limits()),
    st.builds(
        Limits,
        st.integers(1, 4),
        st.integers(1, 6),
        st.sampled_from([300, 1100, 4096]),
        st.integers(1, 3),
    ),
)


def scripts(policy: MergePolicy | None = None) -> st.SearchStrategy[Script]:
    """Scripts for ``policy``, or for all of them."""
    return st.builds(
        Script,
        st.lists(drains, min_size=1, max_size=3),
        st.binary(min_size=30, max_size=90),
        st.sampled_from(MergePolicy) if policy is None else st.just(policy),
        limits,
        st.fixed_dictionaries({IN: actions, OUT: actions, FLUSH: actions}),
        st.fixed_dictionaries({IN: few_sectors, OUT: few_sectors, FLUSH: st.just(frozenset())}),
        st.integers(0, 2),
        st.booleans(),
    )
