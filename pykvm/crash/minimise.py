"""The smallest state that still fails a check: few lost pieces, and an early cut. Pure."""

from collections.abc import Callable, Sequence

from pykvm.crash.model import Base, Frontier, Model
from pykvm.crash.states import State

Fails = Callable[[State], bool]
"""True if the check fails for this state."""


def minimise(
    state: State, fails: Fails, at: Sequence[int], base: Base | None = None, tries: int = 1000
) -> State:
    """A state with fewer lost pieces, at an earlier cut of ``at`` if one fails, too.

    ``state`` fails. The check runs at most ``tries`` times. Unless they run out, the check passes
    as soon as any one of the lost pieces survives.
    """
    budget = _Budget(fails, tries)
    found = _fewer_lost(state, budget)
    lost = _lost_sectors(found)
    for cut in sorted(cut for cut in at if cut < found.frontier.cut):
        frontier = Frontier(found.frontier.log, cut, found.frontier.rules, base)
        earlier = State(frontier, _kept_without(frontier, lost))
        if earlier.lost and budget.fails(earlier):
            return _fewer_lost(earlier, budget)
    return found


class _Budget:
    def __init__(self, fails: Fails, tries: int) -> None:
        self._fails = fails
        self._left = tries

    def fails(self, state: State) -> bool:
        """Whether ``state`` fails; False once all tries are used."""
        if not self._left:
            return False
        self._left -= 1
        return self._fails(state)


def _fewer_lost(state: State, budget: _Budget) -> State:
    """Have pieces survive, in groups of half the pieces at first, as long as the check fails."""
    frontier = state.frontier
    size = max(1, state.lost // 2)
    while True:
        lost = [n for n in range(len(frontier.pieces)) if not state.kept >> n & 1]
        groups = [lost[at : at + size] for at in range(0, len(lost), size)]
        smaller = None
        for group in groups if frontier.rules.model is not Model.PREFIX else groups[:1]:
            tried = State(frontier, state.kept | sum(1 << number for number in group))
            if budget.fails(tried):
                smaller = tried
                break
        if smaller is not None:
            state = smaller
            size = max(1, min(size, state.lost // 2))
        elif size > 1:
            size //= 2
        else:
            return state


def _lost_sectors(state: State) -> set[tuple[int, int]]:
    """(entry, sector) of everything that is lost."""
    pieces = state.frontier.pieces
    return {
        (piece.entry, sector)
        for number, piece in enumerate(pieces)
        if not state.kept >> number & 1
        for sector in piece.sectors
    }


def _kept_without(frontier: Frontier, lost: set[tuple[int, int]]) -> int:
    """The pieces that survive if those with a sector of ``lost`` are lost."""
    kept = 0
    for number, piece in enumerate(frontier.pieces):
        if not any((piece.entry, sector) in lost for sector in piece.sectors):
            kept |= 1 << number
        elif frontier.rules.model is Model.PREFIX:
            break
    return kept
