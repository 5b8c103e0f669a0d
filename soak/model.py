"""The possible contents of each sector of a disk, with any number of requests in flight. Pure.

A sector has *versions*: contents that a read may find. The rules:

- Access A comes *before* access B if A was answered before B was issued, or if both are
  in one batch and A was issued first. A batch is the set of requests that a driver makes
  available at once. The device keeps the order of overlapping requests in a batch. All
  other accesses may happen in any order.
- A write adds a version when it is issued. When it succeeds, it replaces the versions of
  all writes before it. When it fails, or is lost in a reset, it may have happened, in
  part too, or not. It cannot happen later.
- A read may find a version, except if the version was replaced before the read was
  issued, comes after the read, or is replaced by a write before the read.
- If several versions are possible, each byte may come from any of them.

Time is a number that rises with each event.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

SECTOR: Final = 512
ZEROS: Final = bytes(SECTOR)
NEVER: Final = 1 << 62
"""A time that is never reached."""


@dataclass(eq=False, slots=True)
class Access:
    """A request, in flight or finished: its ``batch``, its ``place`` there, and its times.

    ``low`` and ``high`` are the smallest and largest sizes of the disk meanwhile, in
    sectors.
    """

    batch: int
    place: int
    issued: int
    low: int
    high: int
    over: int = NEVER

    def before(self, other: "Access") -> bool:
        """True if it certainly happened before ``other``."""
        same = self.batch == other.batch
        return self.over < other.issued or (same and self.place < other.place)


@dataclass(eq=False, slots=True)
class Version:
    """A possible content of a sector, its writer, and the time when it was certainly replaced.

    ``sure``: the sector certainly had it, or a version of the same time.
    """

    access: Access
    content: bytes
    replaced: int = NEVER
    sure: bool = False


@dataclass(eq=False, slots=True)
class Change:
    """The ``contents`` that an access writes from sector ``first`` on.

    ``sure``: if the access succeeds, it certainly wrote them.
    """

    first: int
    contents: Sequence[bytes]
    sure: bool = True
    versions: list[Version] = field(default_factory=list)


class Model:
    """A disk of sectors. One thread at a time uses it."""

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
        """Record a request that is about to be made available, with its changes within the disk."""
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
        """Record the answer that the request was carried out."""
        for change in self._end(access):
            if not change.sure:
                continue
            for sector, version in enumerate(change.versions, change.first):
                version.sure = True
                for other in self._sectors[sector]:
                    if other.access.before(access) and other.replaced == NEVER:
                        other.replaced = self.now

    def fail(self, access: Access) -> None:
        """Record that the request failed or was lost, so its effect is unknown."""
        self._end(access)

    def refuse(self, access: Access) -> None:
        """Record the answer that the request had no effect."""
        for change in self._end(access):
            for sector, version in enumerate(change.versions, change.first):
                self._sectors[sector].remove(version)

    def observer(self) -> Access:
        """An access that reads the whole disk at this moment."""
        self.now += 1
        return Access(-1, 0, self.now, self.capacity, self.capacity)

    def possible(self, reader: Access, sector: int) -> list[bytes]:
        """The contents that ``reader`` may find in ``sector``."""
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
        """Record ``content``, found in ``sector`` while no request was in flight."""
        assert not self._flying, "the sector can still change"
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
        """True between :meth:`resizing` and :meth:`resized`."""
        return len(self._possible) > 1

    def resizing(self, capacity: int) -> None:
        """From now on the disk may have ``capacity`` sectors, or its old number."""
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
        """From now on the disk has its new capacity."""
        (self.capacity,) = self._possible - {self.capacity} or {self.capacity}
        self._possible = {self.capacity}

    def _reach(self, sectors: int) -> None:
        while len(self._sectors) < sectors:
            past = Access(0, 0, 0, 0, 0, over=0)
            self._sectors.append([Version(past, ZEROS)])


def explains(contents: Sequence[bytes], found: bytes) -> bool:
    """True if each byte of ``found`` is at its place in one of ``contents``."""
    if found in contents:
        return True
    if len(contents) < 2:
        return False
    columns = zip(*contents, strict=True)
    return all(byte in column for byte, column in zip(found, columns, strict=True))
