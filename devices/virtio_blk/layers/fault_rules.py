"""Rules that make operations fail, come back short or take long; and their state. Pure.

The rules examine each operation that a disk gives to its engine, in their order.
A rule *matches* an operation by kind and sectors. It *strikes* a match if
``nth``, ``count`` and ``probability`` allow it. The first rule that strikes
decides, and the later ones do not see the operation.

An operation is not a request. Merged requests are one operation, and so one
match. If that fails or comes back short, each of the requests becomes an
operation, and so a match, of its own.

The same operations in the same order have the same faults. Each rule with a
probability has its own random numbers, derived from the seed and from the number
of rules added before it.
"""

import errno as errnos
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from struct import calcsize, pack, unpack
from typing import Any, TypeGuard

from pykvm.devices.virtio_blk.constants import OPERATION_NAMES, SECTOR_SHIFT
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.errors import UsageError
from pykvm.forms import refused
from pykvm.snapshot.fields import Fields, Saved
from pykvm.suggest import did_you_mean

OPERATIONS = ("any", *OPERATION_NAMES.values())
MAX_SECTOR = (1 << 55) - 1
MAX_COUNT = (1 << 63) - 1
MAX_DELAY_MS = 3_600_000

_MOST_TEXT = 1000
"""Characters of a saved rule. Its function shows as its name, and its address, so it is the same
rule only within the process."""
_WORDS = 624
_RANDOM = f"<{_WORDS + 1}I"
"""The state of the Mersenne Twister: its words, and the place of the next one."""

_ERRNOS = {name: number for name, number in vars(errnos).items() if name.startswith("E")}


@dataclass(frozen=True, slots=True)
class Access:
    """An operation, as a rule sees it."""

    operation: str
    """A name, such as ``"read"``: see :class:`Fault`."""
    sector: int
    """The first sector of 512 bytes that the operation touches, at least in part; 0 for a flush."""
    sectors: int
    """The number of sectors that it touches; 0 for a flush."""

    @classmethod
    def of(cls, operation: Operation) -> "Access":
        """``operation``, as a rule sees it."""
        first = operation.offset >> SECTOR_SHIFT
        end = operation.offset + operation.length + (1 << SECTOR_SHIFT) - 1 >> SECTOR_SHIFT
        name = OPERATION_NAMES[operation.kind]
        return cls(name, first, end - first) if operation.length else cls(name, 0, 0)


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect on an operation. Its parts combine. UsageError for an invalid value."""

    errno: str | int = 0
    """The operation fails with this error: a name such as ``"EIO"``, or its number; 0: it does not
    fail. Before it fails it transfers ``short`` bytes, or none if ``short`` is None."""
    short: int | None = None
    """The operation reads, writes, discards or zeroes at most this number of bytes; None: all."""
    delay_ms: float = 0
    """The operation starts this number of milliseconds later, at most an hour."""

    def __post_init__(self) -> None:
        _check_errno(self.errno)
        if self.short is not None:
            _check_whole("short", self.short, 0, MAX_COUNT)
        _check_number("delay_ms", self.delay_ms, MAX_DELAY_MS)

    @property
    def error(self) -> int:
        """``errno`` as a number, 0 for none."""
        return _ERRNOS[self.errno] if isinstance(self.errno, str) else self.errno


Call = Callable[[Access], Effect | None]
"""Decides about an operation that its rule would strike; None: the next rule decides.

It runs in the disk's I/O thread, so the disk waits for it. An exception in it ends the run.
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule: it matches operations, strikes some of the matches, and has an effect on those.

    UsageError for an invalid value, and for a rule without an effect.
    """

    operation: str = "any"
    """The operations that match: ``"read"``, ``"write"``, ``"flush"``, ``"discard"``,
    ``"write-zeroes"`` or ``"any"``."""
    sectors: int | str | Sequence[int] | None = None
    """Only operations that touch one of these sectors of 512 bytes match: a number, ``(first,
    last)``, ``"0-7"``, or ``"8-"`` for all from there; None: all. No flush matches then."""
    nth: int = 1
    """The first match that it strikes, counted from 1."""
    count: int | None = None
    """The most matches that it strikes; None: no limit."""
    probability: float = 1
    """The probability with which it strikes each of these matches, 0 to 1."""
    errno: str | int = 0
    """See :class:`Effect`."""
    short: int | None = None
    """See :class:`Effect`. No flush matches then."""
    delay_ms: float = 0
    """See :class:`Effect`."""
    call: Call | None = None
    """A function that takes the :class:`Access` and returns the :class:`Effect`, instead of the
    three fields above. If it returns None, the rule does not strike, and the next rule decides."""

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise refused("operation", self.operation, f"use {', '.join(OPERATIONS)}")
        _check_whole("nth", self.nth, 1, MAX_COUNT)
        if self.count is not None:
            _check_whole("count", self.count, 1, MAX_COUNT)
        _check_number("probability", self.probability, 1)
        sector_range(self.sectors)
        if self.operation == "flush" and (self.sectors is not None or self.short is not None):
            raise UsageError("a flush has no sectors and no length", "leave out sectors and short")
        has_effect = self.effect != Effect()
        if self.call is not None and not callable(self.call):
            raise refused("call", self.call, "give a function")
        if self.call is None and not has_effect:
            raise UsageError("the rule has no effect", "give errno, short or delay_ms")
        if self.call is not None and has_effect:
            raise UsageError(
                "call cannot be combined with errno, short or delay_ms",
                "return an Effect from call instead",
            )

    @property
    def effect(self) -> Effect:
        """The effect on an operation that the rule strikes, unless there is a ``call``."""
        return Effect(self.errno, self.short, self.delay_ms)


class FaultRule:
    """A fault, and the number of its ``matches`` and ``strikes`` so far."""

    def __init__(self, fault: Fault, random: Random) -> None:
        self.fault = fault
        self.matches = 0
        self.strikes = 0
        self._effect = fault.effect
        self._first, self._last = sector_range(fault.sectors)
        self._data_only = fault.sectors is not None or fault.short is not None
        self._random = random

    def copy(self) -> "FaultRule":
        """A rule with the same state."""
        random = Random()
        random.setstate(self._random.getstate())
        made = FaultRule(self.fault, random)
        made.matches, made.strikes = self.matches, self.strikes
        return made

    def effect(self, access: Access) -> Effect | None:
        """The rule's effect on ``access``, or None; counts the match and the strike."""
        fault = self.fault
        if not self._matches(access):
            return None
        self.matches += 1
        if self.matches < fault.nth or (fault.count is not None and self.strikes >= fault.count):
            return None
        # A probability of 1 draws no number, so that such a rule does not depend on chance.
        if fault.probability < 1 and self._random.random() >= fault.probability:
            return None
        effect = fault.call(access) if fault.call else self._effect
        if effect is not None:
            self.strikes += 1
        return effect

    def save(self) -> Fields:
        """The rule as text, its counts, and its random numbers if it needs any."""
        state = b""
        if self.fault.probability < 1:
            state = pack(_RANDOM, *self._random.getstate()[1])
        counts = {"matches": self.matches, "strikes": self.strikes}
        return {"fault": repr(self.fault)[:_MOST_TEXT], **counts, "random": state}

    def load(self, saved: Saved) -> None:
        """Take over the counts and the random numbers of a rule for the same fault."""
        self.matches = saved.integer("matches", 0, MAX_COUNT)
        self.strikes = saved.integer("strikes", 0, MAX_COUNT)
        size = calcsize(_RANDOM) if self.fault.probability < 1 else 0
        words = unpack(_RANDOM, state) if (state := saved.data("random", size, size)) else ()
        if words:
            if words[-1] > _WORDS:
                saved.refuse("random is no state of random numbers")
            self._random.setstate((3, words, None))

    def _matches(self, access: Access) -> bool:
        if self.fault.operation not in ("any", access.operation):
            return False
        if not access.sectors:
            return not self._data_only
        return access.sector <= self._last and self._first < access.sector + access.sectors


class FaultRules:
    """Rules in their order, and their state. Not thread-safe."""

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        _check_whole("seed", seed, -MAX_COUNT, MAX_COUNT)
        self.rules: list[FaultRule] = []
        self._seed = seed
        self._added = 0
        if isinstance(faults, Fault) or not isinstance(faults, Iterable):
            raise refused("faults", faults, "give a list of Faults")
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> FaultRule:
        """Add ``fault`` after all other rules. UsageError if it is not a :class:`Fault`."""
        if not isinstance(fault, Fault):
            raise refused("a fault", fault, "give a Fault")
        # A string, because Random derives the same state from it in every process and version.
        rule = FaultRule(fault, Random(f"{self._seed}/{self._added}"))
        self._added += 1
        self.rules.append(rule)
        return rule

    def copy(self) -> "FaultRules":
        """The same rules with the same state, to go on independently."""
        made = FaultRules(seed=self._seed)
        made._added = self._added
        made.rules = [rule.copy() for rule in self.rules]
        return made

    def save(self) -> Fields:
        """The rules and their state."""
        return {"count": len(self.rules), "rules": [rule.save() for rule in self.rules]}

    def load(self, saved: Saved) -> None:
        """Take over the state that :meth:`save` gave, if the rules are the same. SnapshotError."""
        parts = saved.parts("rules", saved.integer("count", 0, MAX_COUNT))
        saved.end()
        faults = [part.text("fault", _MOST_TEXT) for part in parts]
        if faults == [repr(rule.fault)[:_MOST_TEXT] for rule in self.rules]:
            for rule, part in zip(self.rules, parts, strict=True):
                rule.load(part)

    def effect(self, access: Access) -> Effect | None:
        """The effect of the first rule that strikes ``access``, or None."""
        # A copy: a call may change the rules.
        for rule in tuple(self.rules):
            effect = rule.effect(access)
            if effect is not None:
                return effect
        return None


def sector_range(sectors: object) -> tuple[int, int]:
    """The first and the last sector of ``sectors``, a field of :class:`Fault`."""
    if sectors is None:
        return 0, MAX_SECTOR
    first: Any = sectors
    last: Any = sectors
    if isinstance(sectors, str):
        match = re.fullmatch(r"([0-9]{1,20})(?:(-)([0-9]{1,20})?)?", sectors)
        if not match:
            raise _sectors_error(sectors)
        first = int(match[1])
        last = int(match[3]) if match[3] else MAX_SECTOR if match[2] else first
    elif isinstance(sectors, list | tuple) and len(sectors) == 2:
        first, last = sectors
    if not (_is_whole(first) and _is_whole(last) and 0 <= first <= last <= MAX_SECTOR):
        raise _sectors_error(sectors)
    return first, last


def _sectors_error(sectors: object) -> UsageError:
    hint = 'use a number, [first, last], "0-7", or "8-" for all from there'
    return refused("sectors", sectors, hint)


def _check_errno(value: object) -> None:
    if isinstance(value, str):
        if value not in _ERRNOS:
            raise refused("errno", value, did_you_mean(value, _ERRNOS, "use a name such as EIO"))
    elif not _is_whole(value) or value not in (0, *errnos.errorcode):
        raise refused("errno", value, "use a name such as EIO")


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if not _is_whole(value) or not least <= value <= most:
        raise refused(name, value, f"use a whole number from {least}")


def _check_number(name: str, value: object, most: float) -> None:
    """Neither a truth value nor NaN passes."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise refused(name, value, f"use a number from 0 to {most}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
