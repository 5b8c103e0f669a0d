"""What the witness in a guest knows of its disk, and the comparison of both. Pure.

The witness (``witness.c``) keeps a page for each of its workers in the guest's memory: for each
block the newest generation whose write was asked for, and the newest whose write was answered.
A sector of the disk has to hold one of these, or one in between, whole.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

WORKERS: Final = 4
BLOCKS: Final = 256
"""Blocks of each worker."""
BLOCK: Final = 4096
SECTOR: Final = 512
DISK_BYTES: Final = WORKERS * BLOCKS * BLOCK

MAGIC: Final = b"k.ledger"
_PAGE: Final = 4096
_HEAD: Final = Struct("<8s7Q")
_GENERATIONS: Final = Struct(f"<{BLOCKS}I")
_SECTOR: Final = Struct("<QIIQ")
_ERRORS: Final = (
    "",
    "a read failed",
    "a write failed",
    "a flush failed",
    "a block had the wrong content",
    "it has no disk",
)


class LedgerError(Exception):
    """The guest, or its disk, is not as the guest left it."""


@dataclass(frozen=True)
class Page:
    """The knowledge of one worker: its ``calls`` so far, and generations of its blocks."""

    calls: int
    started: tuple[int, ...]
    done: tuple[int, ...]


@dataclass(frozen=True)
class Ledger:
    """The pages of all workers at one moment."""

    nonce: int
    pages: tuple[Page, ...]

    @classmethod
    def read(cls, nonce: int, pages: Sequence[bytes]) -> Self:
        """The ledger in ``pages``, in the workers' order. LedgerError if a worker has failed."""
        read = []
        for number, page in enumerate(pages):
            magic, own_nonce, worker, error, *numbers, calls = _HEAD.unpack_from(page)
            if (magic, own_nonce, worker) != (MAGIC, nonce, number):
                raise LedgerError(f"page {number} of the ledger is gone")
            if error:
                block, expected, found = numbers
                raise LedgerError(
                    f"worker {number}: {_ERRORS[error]}: block {block}, expected {expected}, "
                    f"found {found if found < 1 << 63 else found - (1 << 64)}"
                )
            started = _GENERATIONS.unpack_from(page, _HEAD.size)
            done = _GENERATIONS.unpack_from(page, _HEAD.size + _GENERATIONS.size)
            read.append(Page(calls, started, done))
        return cls(nonce, tuple(read))

    @property
    def calls(self) -> tuple[int, ...]:
        """The count of each worker."""
        return tuple(page.calls for page in self.pages)

    @property
    def in_flight(self) -> int:
        """The blocks whose writes were asked for, and not answered."""
        return sum(
            started != done
            for page in self.pages
            for started, done in zip(page.started, page.done, strict=True)
        )

    def check_follows(self, earlier: "Ledger") -> None:
        """LedgerError unless the guest may have become this one from ``earlier``."""
        for number, (page, before) in enumerate(zip(self.pages, earlier.pages, strict=True)):
            if page.calls < before.calls:
                raise LedgerError(f"worker {number} counts {page.calls} after {before.calls}")
            for name in ("started", "done"):
                for block, (now, then) in enumerate(
                    zip(getattr(page, name), getattr(before, name), strict=True)
                ):
                    if now < then:
                        raise LedgerError(
                            f"worker {number}, block {block}: generation {now} is {name} "
                            f"after {then}"
                        )

    def check_disk(self, content: bytes) -> None:
        """LedgerError unless each sector of ``content`` is whole, and of a possible generation."""
        for worker, page in enumerate(self.pages):
            for index, (started, done) in enumerate(zip(page.started, page.done, strict=True)):
                block = worker * BLOCKS + index
                for place in range(BLOCK // SECTOR):
                    start = block * BLOCK + place * SECTOR
                    found = self._generation(content[start : start + SECTOR], block, place)
                    if not done <= found <= started:
                        raise LedgerError(
                            f"block {block}, sector {place}: generation {found} is on the disk; "
                            f"{done} was answered, {started} asked for"
                        )

    def _generation(self, sector: bytes, block: int, place: int) -> int:
        """The generation in a sector, which is whole; 0 for zeros."""
        if not any(sector):
            return 0
        generation: int
        nonce, own_block, generation, own_place = _SECTOR.unpack_from(sector)
        whole = zlib.crc32(sector[:-4]) == int.from_bytes(sector[-4:], "little")
        if not whole or (nonce, own_block, own_place) != (self.nonce, block, place):
            raise LedgerError(f"block {block}, sector {place}: its content is nobody's")
        return generation


def find_pages(ram: memoryview, nonce: int) -> list[int]:
    """The places of the workers' pages in ``ram``, in the workers' order."""
    places: dict[int, int] = {}
    wanted = MAGIC + nonce.to_bytes(8, "little")
    for at in _occurrences(bytes(ram), wanted):
        worker = int.from_bytes(ram[at + 16 : at + 24], "little")
        if at % _PAGE == 0 and worker < WORKERS:
            places[worker] = at
    if sorted(places) != list(range(WORKERS)):
        raise LedgerError(f"the guest's memory has the pages of workers {sorted(places)} only")
    return [places[worker] for worker in range(WORKERS)]


def _occurrences(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)
