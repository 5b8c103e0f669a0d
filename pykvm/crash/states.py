"""The states in which a power cut can leave a disk: their choice, and their ids. Pure.

A state is a cut and the pieces that survive it (:mod:`pykvm.crash.model`). Its id names the log,
the rules, the cut and the pieces, and gives the same bytes on every host::

    5f2c90d1a7e34b68-virtio-512-37-1f
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from itertools import combinations, islice

from pykvm.crash.model import Base, Frontier, Model, Rules, Tear
from pykvm.devices.virtio_blk.observe.write_log import WriteKind, WriteLog
from pykvm.errors import UsageError, shown

_DIGITS = 16
"""Digits of the log's hash in an id."""
_EXHAUSTIVE = 10
"""All sets of at most this number of pieces are tried before a set is chosen at random."""
REPEATS = 1 << 13
"""A cut is given up after this number of sets in a row with contents that are known."""


class Cuts(Enum):
    """The moments at which the power is cut."""

    FLUSH = "flush"
    """Before each flush and each durable write ends, and after the last event. Between two such
    cuts the set of legal contents only grows, so these cuts have every content of the virtio
    model. A check that depends on marks needs other cuts, too."""
    MARK = "mark"
    """After each mark, and after the last event."""
    REQUEST = "request"
    """After each event."""


def cuts(log: WriteLog, at: Cuts) -> list[int]:
    """The cuts of ``log`` at these moments, in ascending order."""
    if at is Cuts.REQUEST:
        return list(range(log.events + 1))
    if at is Cuts.MARK:
        found = {e.began + 1 for e in log.entries if e.kind is WriteKind.MARK}
    else:
        stabilising = (e for e in log.entries if e.kind is WriteKind.FLUSH or e.durable)
        found = {e.ended for e in stabilising if e.ended <= log.events}
    return sorted(found | {log.events})


class State:
    """A legal content of the disk after a power cut.

    ``kept`` has a bit for each of the frontier's pieces. ``changes`` are the sectors that differ
    from ``frontier.stable``.
    """

    def __init__(self, frontier: Frontier, kept: int) -> None:
        """ValueError for pieces that cannot survive."""
        self.frontier = frontier
        self.kept = kept
        self.changes = frontier.changes(kept)

    @property
    def id(self) -> str:
        """The state's name: see the module."""
        frontier = self.frontier
        rules = f"{frontier.rules.model.value}-{frontier.rules.tear.value}"
        return f"{frontier.log.digest[:_DIGITS]}-{rules}-{frontier.cut}-{self.kept:x}"

    @property
    def lost(self) -> int:
        """The number of pieces that do not survive."""
        return len(self.frontier.pieces) - self.kept.bit_count()

    def content(self) -> dict[int, bytes]:
        """The sectors that differ from the disk at the beginning of the log, or were rewritten."""
        return self.frontier.stable | self.changes


def state_of(log: WriteLog, name: str, base: Base | None = None) -> State:
    """The state of ``log`` with the id ``name``, and the ``base`` with which it was chosen.

    UsageError if it is the state of a different log, or no id.
    """
    hint = "give an id that 'explore' printed for this log"
    try:
        digest, model, tear, cut, kept = name.split("-")
        rules = Rules(Model(model), Tear(tear))
        place, bits = int(cut), int(kept, 16)
        if (cut, kept) != (str(place), f"{bits:x}"):
            raise ValueError
    except ValueError:
        raise UsageError(f"'{shown(name)}' is not the id of a state", hint) from None
    if digest != log.digest[:_DIGITS]:
        raise UsageError(f"the state '{name}' belongs to a different log", hint)
    try:
        return State(Frontier(log, place, rules, base), bits)
    except ValueError as error:
        raise UsageError(f"the log has no state '{name}': {error}", hint) from None


@dataclass(slots=True)
class Coverage:
    """The part of the legal states that was chosen.

    ``legal`` counts pairs of a cut and a set of surviving pieces. ``repeats`` counts those that
    were left out because an earlier one gave the same content at the same marks.
    """

    legal: int = 0
    chosen: int = 0
    repeats: int = 0

    @property
    def complete(self) -> bool:
        """True if every legal state was chosen, or has the content of a chosen one."""
        return self.chosen + self.repeats == self.legal


def states(
    log: WriteLog,
    at: Sequence[int],
    rules: Rules,
    *,
    most: int,
    seed: int,
    base: Base | None = None,
    coverage: Coverage | None = None,
) -> Iterator[State]:
    """At most ``most`` legal states of ``log`` at the cuts ``at``, each content once.

    The cuts share ``most`` evenly, and those with fewer states leave the rest to the others. Each
    gives first the states in which all pieces or none survive, then those in which one is lost or
    only one survives, and so on with two. All sets follow if the pieces are few; else random ones,
    which are the same for the same ``seed``. A cut whose sets give only known contents is given up.
    ``coverage`` is kept up to date.
    """
    counts = coverage if coverage is not None else Coverage()
    hashes = _Hashes(base)
    waiting = [_Turn(cut, Frontier(log, cut, rules, base).survivors) for cut in at]
    counts.legal = sum(turn.left for turn in waiting)
    seen: set[tuple[int, int]] = set()
    while waiting and counts.chosen < most:
        # One frontier at a time, because each has the content of all sectors that were written.
        for turn, share in zip(waiting, _shares(waiting, most - counts.chosen), strict=True):
            frontier = Frontier(log, turn.cut, rules, base)
            stable = hashes.of_stable(frontier)
            end = counts.chosen + share
            for kept in islice(_kept(frontier, seed), turn.used, None):
                if counts.chosen == end or turn.repeats == REPEATS:
                    break
                turn.used += 1
                turn.left -= 1
                state = State(frontier, kept)
                identity = (len(frontier.marks), hashes.of(state, stable))
                if identity in seen:
                    counts.repeats += 1
                    turn.repeats += 1
                    continue
                seen.add(identity)
                counts.chosen += 1
                turn.repeats = 0
                yield state
        waiting = [turn for turn in waiting if turn.left and turn.repeats < REPEATS]


@dataclass(slots=True)
class _Turn:
    """A cut, the number of its sets that are left, that were used, and that gave nothing new."""

    cut: int
    left: int
    used: int = 0
    repeats: int = 0


def _shares(turns: Sequence[_Turn], total: int) -> list[int]:
    """``total`` divided evenly, but none gets more than it has left."""
    shares = [0] * len(turns)
    order = sorted(range(len(turns)), key=lambda number: turns[number].left)
    for place, number in enumerate(order):
        shares[number] = min(turns[number].left, -(-total // (len(order) - place)))
        total -= shares[number]
    return shares


def _kept(frontier: Frontier, seed: int) -> Iterator[int]:
    """All sets of surviving pieces, each once, and the telling ones first."""
    count = len(frontier.pieces)
    everything = (1 << count) - 1
    if frontier.rules.model is Model.PREFIX:
        yield from ((1 << length) - 1 for length in range(count + 1))
        return
    seen: set[int] = set()

    def ordered() -> Iterator[int]:
        for size in range(min(count, 2) + 1):
            for group in combinations(range(count), size):
                bits = sum(1 << number for number in group)
                yield everything & ~bits
                yield bits
        if count <= _EXHAUSTIVE:
            yield from range(everything + 1)

    for kept in ordered():
        if kept not in seen:
            seen.add(kept)
            yield kept
    drawn = random.Random(f"{seed} {frontier.log.digest} {frontier.cut}")
    while len(seen) <= everything:
        # Once most sets are known, a draw rarely finds a new one.
        if count <= _EXHAUSTIVE + 2 and len(seen) > everything // 2:
            yield from (kept for kept in range(everything + 1) if kept not in seen)
            return
        kept = drawn.getrandbits(count)
        if kept not in seen:
            seen.add(kept)
            yield kept


class _Hashes:
    """Hashes of contents: the sum of those of all sectors that differ from ``base``.

    So the hash of a state takes time only for the sectors that may be lost.
    """

    def __init__(self, base: Base | None) -> None:
        self._base = base
        self._known: dict[tuple[int, bytes], int] = {}

    def of_stable(self, frontier: Frontier) -> int:
        """The hash of ``frontier.stable``."""
        return sum(self._of(sector, data) for sector, data in frontier.stable.items())

    def of(self, state: State, stable: int) -> int:
        """The hash of ``state``; ``stable`` is that of its frontier."""
        before = state.frontier.stable
        total = stable
        for sector, data in state.changes.items():
            total += self._of(sector, data)
            if sector in before:
                total -= self._of(sector, before[sector])
        return total % (1 << 128)

    def _of(self, sector: int, data: bytes) -> int:
        known = self._known.get((sector, data))
        if known is None:
            made = blake2b(sector.to_bytes(8, "little") + data, digest_size=16)
            known = int.from_bytes(made.digest(), "little")
            if self._base is not None and data == self._base(sector):
                known = 0
            self._known[sector, data] = known
        return known
