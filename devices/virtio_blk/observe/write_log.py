"""The writes and flushes of one disk in their order, as a power cut needs to know them. Pure.

The log numbers the events of all queues of the disk: 0 is the first. A request has two events. It
begins when the device takes it off its ring, and ends when the device puts it on the used ring.
A cut at ``n`` is a power cut after the events 0 to n-1.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE

NEVER: Final = (1 << 63) - 1
"""The end of a request that has not ended."""

_FIXED: Final = struct.Struct("<8sqqqqqq?")


class WriteKind(Enum):
    """The kind of an entry."""

    WRITE = "write"
    ZEROES = "zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    MARK = "mark"


@dataclass(frozen=True, slots=True)
class Entry:
    """A request that changes the disk or makes changes stable, or a mark.

    ``began`` and ``ended`` are numbers of events; ``ended`` is :data:`NEVER` if the log ends
    before. A mark has one event, so both are equal. ``sent``: when the driver sent the request,
    it can have seen the events before this number, and no others. ``sector`` and ``sectors`` are
    in units of 512 bytes, and 0 for flushes and marks. ``data`` is the content of a write.
    ``durable``: the disk wrote through from the beginning of the request to its end. ``label``
    is a mark's text.
    """

    kind: WriteKind
    began: int
    ended: int
    sent: int = 0
    queue: int = 0
    sector: int = 0
    sectors: int = 0
    data: bytes = b""
    durable: bool = False
    label: str = ""

    @property
    def end(self) -> int:
        """The sector behind the last one."""
        return self.sector + self.sectors

    def content(self, sector: int) -> bytes:
        """The 512 bytes that the request puts into ``sector``; zeros unless it is a write."""
        at = (sector - self.sector) * SECTOR_SIZE
        return self.data[at : at + SECTOR_SIZE] if self.kind is WriteKind.WRITE else _ZEROS


_ZEROS: Final = bytes(SECTOR_SIZE)


class WriteLog:
    """A recorded log. ``entries`` are in the order in which they began.

    ``sectors`` is the size of the disk in units of 512 bytes. ``events`` is the number of events,
    so the cuts of the log are 0 to ``events``.
    """

    def __init__(self, sectors: int, entries: Iterable[Entry]) -> None:
        """ValueError if the entries contradict each other, or the size of the disk."""
        self.sectors = sectors
        self.entries = tuple(entries)
        self.events = self._checked()
        self._digest = ""

    @property
    def digest(self) -> str:
        """A hash of the whole log, in hexadecimal digits."""
        if not self._digest:
            made = hashlib.sha256(struct.pack("<q", self.sectors))
            for one in self.entries:
                numbers = (one.began, one.ended, one.sent, one.queue, one.sector, one.sectors)
                made.update(_FIXED.pack(one.kind.value.encode(), *numbers, one.durable))
                for content in (one.data, one.label.encode()):
                    made.update(struct.pack("<q", len(content)))
                    made.update(content)
            self._digest = made.hexdigest()
        return self._digest

    def _checked(self) -> int:
        """The number of events."""
        seen: set[int] = set()
        before = -1
        for number, one in enumerate(self.entries):
            reason = self._problem(one, before)
            times = {one.began, one.ended} - {NEVER}
            if not reason and times & seen:
                reason = "its events are those of a different entry"
            if reason:
                raise ValueError(f"entry {number} of the log is wrong: {reason}")
            seen |= times
            before = one.began
        count = max(seen) + 1 if seen else 0
        if len(seen) != count:
            raise ValueError("events of the log are missing")
        return count

    def _problem(self, one: Entry, before: int) -> str:
        if not before < one.began < NEVER:
            return "it does not begin after the one before"
        if one.ended < one.began or (one.ended == one.began) != (one.kind is WriteKind.MARK):
            return "it ends before it begins"
        if not 0 <= one.sent <= one.began:
            return "it was sent after it began"
        if not one.label.isprintable():
            return "its label is not printable"
        if one.kind in (WriteKind.FLUSH, WriteKind.MARK):
            return "it has sectors" if one.sectors or one.sector or one.data else ""
        if one.sectors < 1 or one.sector < 0 or one.end > self.sectors:
            return "it lies beyond the end of the disk"
        size = one.sectors * SECTOR_SIZE if one.kind is WriteKind.WRITE else 0
        return "" if len(one.data) == size else "its data has a different size"
