"""The writes of a log at a power cut: those that are stable, and those that may be lost. Pure.

A write is volatile from its submission on. It becomes stable when it has ended, and

- the disk wrote through all the time, or
- a flush that the driver sent after the end of the write has ended.

The rule is virtio 1.2 §5.2.6. At the cut, each sector has the content of its newest stable write,
or of any later volatile one. Sectors are independent, so any subset of the volatile writes
survives, and any part of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pykvm.devices.virtio_blk.observe.write_log import Entry, WriteKind, WriteLog

Base = Callable[[int], bytes]
"""Returns the 512 bytes that a sector had when the log began."""


class Model(Enum):
    """The writes that a flush makes stable, and the sets of writes that survive."""

    VIRTIO = "virtio"
    """Those that had ended when the driver sent the flush. Any subset of the others survives."""
    DEVICE = "device"
    """Also those that had begun before the flush on its queue, and those that had ended before the
    flush began, as pykvm promises. Any subset of the others survives."""
    PREFIX = "prefix"
    """As DEVICE, and writes survive in the order in which they began: no gaps."""


class Tear(Enum):
    """The largest part of a write that survives as a whole, or not at all."""

    SECTOR = "512"
    BLOCK = "4096"
    REQUEST = "request"


_PER_BLOCK = 8
"""Sectors in a block of 4096 bytes."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The legal survivors of a power cut.

    virtio promises no unit that survives as a whole. Most disks promise 4096 bytes.
    """

    model: Model = Model.VIRTIO
    tear: Tear = Tear.BLOCK


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a volatile write, which survives as a whole, or not at all.

    ``entry`` is the write's number in the log.
    """

    entry: int
    sectors: tuple[int, ...]


class Frontier:
    """A log at one cut.

    ``stable`` has the content of each sector that a stable write has changed. ``pieces`` may be
    lost; they are in the order in which their writes began. A piece lacks the sectors that a later
    stable write has overwritten. ``marks`` are the labels of the marks before the cut.
    """

    def __init__(self, log: WriteLog, cut: int, rules: Rules, base: Base | None = None) -> None:
        """``cut`` is from 0 to ``log.events``. ValueError.

        With ``base``, the pieces lack sectors that have the same content whether or not they
        survive.
        """
        if not 0 <= cut <= log.events:
            raise ValueError(f"the log has no cut {cut}")
        self.log = log
        self.cut = cut
        self.rules = rules
        self.stable: dict[int, bytes] = {}
        self.marks = [e.label for e in log.entries if e.kind is WriteKind.MARK and e.began < cut]
        begun = [one for one in enumerate(log.entries) if one[1].began < cut]
        is_stable = _stability(log, cut, rules.model)
        newest: dict[int, int] = {}
        volatile: list[tuple[int, Entry]] = []
        for number, entry in begun:
            if is_stable(entry):
                for sector in range(entry.sector, entry.end):
                    self.stable[sector] = entry.content(sector)
                    newest[sector] = number
            elif entry.sectors:
                volatile.append((number, entry))
        self.pieces = tuple(
            Piece(number, sectors)
            for number, entry in volatile
            for part in _parts(entry, rules.tear)
            if (sectors := tuple(s for s in part if newest.get(s, -1) < number))
        )
        if base is not None:
            self._drop_repeats(base)

    @property
    def survivors(self) -> int:
        """The number of sets of pieces that can survive. Some of them may have equal contents."""
        count = len(self.pieces)
        return count + 1 if self.rules.model is Model.PREFIX else 1 << count

    def changes(self, kept: int) -> dict[int, bytes]:
        """The sectors in which the survivor differs from :attr:`stable`, and their contents.

        Bit i of ``kept`` is set if piece i survives. For PREFIX, the bits are the lowest ones.
        ValueError for a set of pieces that cannot survive.
        """
        if not 0 <= kept < 1 << len(self.pieces):
            raise ValueError(f"the cut {self.cut} has {len(self.pieces)} pieces")
        if self.rules.model is Model.PREFIX and kept & (kept + 1):
            raise ValueError("the pieces that survive have gaps")
        made = {}
        for number, piece in enumerate(self.pieces):
            if kept >> number & 1:
                entry = self.log.entries[piece.entry]
                for sector in piece.sectors:
                    made[sector] = entry.content(sector)
        return made

    def _drop_repeats(self, base: Base) -> None:
        """Leave out the sectors that have only one possible content."""
        contents: dict[int, set[bytes]] = {}
        for piece in self.pieces:
            entry = self.log.entries[piece.entry]
            for sector in piece.sectors:
                if sector not in contents:
                    contents[sector] = {self.stable.get(sector) or base(sector)}
                contents[sector].add(entry.content(sector))
        self.pieces = tuple(
            Piece(piece.entry, sectors)
            for piece in self.pieces
            if (sectors := tuple(s for s in piece.sectors if len(contents[s]) > 1))
        )


def _stability(log: WriteLog, cut: int, model: Model) -> Callable[[Entry], bool]:
    """A function that says whether a write is stable at ``cut``."""
    flushes = [e for e in log.entries if e.kind is WriteKind.FLUSH and e.ended < cut]
    reach = max((flush.sent for flush in flushes), default=0)
    of_queue: dict[int, int] = {}
    if model is not Model.VIRTIO:
        reach = max((flush.began for flush in flushes), default=0)
        for flush in flushes:
            of_queue[flush.queue] = max(of_queue.get(flush.queue, 0), flush.began)

    def stable(entry: Entry) -> bool:
        if entry.kind not in (WriteKind.WRITE, WriteKind.ZEROES) or entry.ended >= cut:
            return False  # after a discard, a read may return anything, flushed or not
        flushed = entry.ended < reach or entry.began < of_queue.get(entry.queue, 0)
        return entry.durable or flushed

    return stable


def _parts(entry: Entry, tear: Tear) -> list[range]:
    """The sectors of ``entry``, in parts that survive as a whole. A discard is one part."""
    if tear is Tear.REQUEST or entry.kind is WriteKind.DISCARD:
        return [range(entry.sector, entry.end)]
    size = _PER_BLOCK if tear is Tear.BLOCK else 1
    starts = range(entry.sector - entry.sector % size, entry.end, size)
    return [range(max(at, entry.sector), min(at + size, entry.end)) for at in starts]
