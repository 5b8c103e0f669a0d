"""What each sector of a disk may hold, while any number of requests are under way. Pure.

A sector has *versions*: contents that a read may find. The rules:

- An access comes *before* another one if it was answered before the other one
  was issued, or if both are in one batch and it was issued first. A batch is
  what a driver makes available at once; the device keeps the order of what
  overlaps in it. Everything else may happen in any order.
- A write adds a version when it is issued. When it succeeds, it replaces the
  versions of all writes before it. When it fails, or is lost in a reset, it may
  have happened or not, in part too; it cannot happen any more.
- A read may find a version unless that was replaced before the read was
  issued, or comes after the read, or is replaced by a write before the read.
- Where several versions are possible, each byte may be of another one.

Time is a number that rises with each thing that happens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

SECTOR: Final = 512
ZEROS: Final = bytes(SECTOR)
NEVER: Final = 1 << 62
"""A time that does not come."""


@dataclass(eq=False, slots=True)
class Access:
    """A request in flight, or one that is over: its ``batch``, its ``place`` in it, and times.

    ``low`` and ``high`` are the least and the most sectors that the disk had meanwhile.
    """

    batch: int
    place: int
    issued: int
    low: int
    high: int
    over: int = NEVER

    def before(self, other: "Access") -> bool:
        """Did it surely happen before ``other``?"""
        same = self.batch == other.batch
        return self.over < other.issued or (same and self.place < other.place)


@dataclass(eq=False, slots=True)
class Version:
    """A content that a sector may have, by whom, and when it was replaced for sure.

    ``sure``: the sector has had it, or something of the same time.
    """

    access: Access
    content: bytes
    replaced: int = NEVER
    sure: bool = False


@dataclass(eq=False, slots=True)
class Change:
    """What an access writes: from sector ``first`` on, ``contents``. ``sure``: if it succeeds."""

    first: int
    contents: Sequence[bytes]
    sure: bool = True
    versions: list[Version] = field(default_factory=list)


class Model:
    """A disk of sectors. One thread at a time."""

    def __init__(self, content: bytes) -> None:
        self.now = 1
        self.capacity = len(content) // SECTOR
        self._possible = {self.capacity}
        self._flying: dict[Access, Sequence[Change]] = {}
        past = Access(0, 0, 0, 0, 0, over=0)
        self._sectors = [
            [Version(past, content[at : at + SECTOR])] for at in range(0, len(content), SECTOR)
        ]

    # -- requests ------------------------------------------------------------

    def issue(self, batch: int, place: int, changes: Sequence[Change] = ()) -> Access:
        """A request is about to be made available; what it changes within the disk."""
        self.now += 1
        access = Access(batch, place, self.now, min(self._possible), max(self._possible))
        oldest = next(iter(self._flying)).issued if self._flying else self.now
        self._flying[access] = changes
        for change in changes:
            self._reach(change.first + len(change.contents))
            for sector, content in enumerate(change.contents, change.first):
                versions = self._sectors[sector]
                if len(versions) > 1:
                    versions[:] = [v for v in versions if v.replaced > oldest]
                change.versions.append(Version(access, content))
                versions.append(change.versions[-1])
        return access

    def succeed(self, access: Access) -> None:
        """The request was answered: it was carried out."""
        for change in self._end(access):
            if not change.sure:
                continue
            for sector, version in enumerate(change.versions, change.first):
                version.sure = True
                for other in self._sectors[sector]:
                    if other.access.before(access) and other.replaced == NEVER:
                        other.replaced = self.now

    def fail(self, access: Access) -> None:
        """The request failed or was lost: nobody knows how far it came."""
        self._end(access)

    def refuse(self, access: Access) -> None:
        """The request was answered without anything done."""
        for change in self._end(access):
            for sector, version in enumerate(change.versions, change.first):
                self._sectors[sector].remove(version)

    def observer(self) -> Access:
        """Somebody who looks at the disk now, and at once."""
        self.now += 1
        return Access(-1, 0, self.now, self.capacity, self.capacity)

    def possible(self, reader: Access, sector: int) -> list[bytes]:
        """What ``reader`` may find in ``sector``."""
        versions = self._sectors[sector]
        if len(versions) == 1:
            return [versions[0].content]
        found = [v for v in versions if v.replaced > reader.issued and not reader.before(v.access)]
        batch = [
            v.access
            for v in found
            if v.sure and v.access.batch == reader.batch and v.access.before(reader)
        ]
        if batch:
            last = max(batch, key=lambda access: access.place)
            found = [v for v in found if not v.access.before(last)]
        return [v.content for v in found]

    def settle(self, sector: int, content: bytes) -> None:
        """Nothing is in flight, and ``sector`` was found to hold ``content``."""
        assert not self._flying, "it may change any moment"
        versions = self._sectors[sector]
        if len(versions) > 1:
            past = Access(0, 0, self.now, 0, 0, over=self.now)
            versions[:] = [Version(past, content)]

    def _end(self, access: Access) -> Sequence[Change]:
        self.now += 1
        access.over = self.now
        return self._flying.pop(access)

    # -- size ----------------------------------------------------------------

    @property
    def resizing_now(self) -> bool:
        """Between :meth:`resizing` and :meth:`resized`."""
        return len(self._possible) > 1

    def resizing(self, capacity: int) -> None:
        """From now on the disk may have ``capacity`` sectors, or still what it had."""
        self.now += 1
        self._possible.add(capacity)
        for access in self._flying:
            access.low = min(access.low, capacity)
            access.high = max(access.high, capacity)
        self._reach(capacity)
        cut = Access(0, 0, self.now, 0, 0, over=self.now)
        for versions in self._sectors[capacity : max(self.capacity, capacity)]:
            for version in versions:
                if version.access.over <= self.now:
                    version.replaced = min(version.replaced, self.now)
            versions.append(Version(cut, ZEROS))

    def resized(self) -> None:
        """It has."""
        (self.capacity,) = self._possible - {self.capacity} or {self.capacity}
        self._possible = {self.capacity}

    def _reach(self, sectors: int) -> None:
        while len(self._sectors) < sectors:
            past = Access(0, 0, 0, 0, 0, over=0)
            self._sectors.append([Version(past, ZEROS)])


def explains(contents: Sequence[bytes], found: bytes) -> bool:
    """Is each byte of ``found`` the one of any of ``contents`` in its place?"""
    if found in contents:
        return True
    if len(contents) < 2:
        return False
    columns = zip(*contents, strict=True)
    return all(byte in column for byte, column in zip(found, columns, strict=True))
