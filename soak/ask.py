"""Random requests of a driver: overlapping valid ones, with invalid ones in between. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from struct import pack
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    HEADER_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from soak.model import SECTOR, ZEROS, Change

NONSENSE: Final = (2, 3, 5, 9, 16, 1 << 31, 0xFFFF_FFFF)
"""Request types that no device has."""
FAR: Final = (1 << 23, 1 << 54, 1 << 55, (1 << 64) - 1)
"""Sectors behind the end of every disk here."""


@dataclass(frozen=True, eq=False, slots=True)
class Ask:
    """A request before it has memory.

    ``readable`` has header and data. ``writable`` is the number of bytes for data
    and status. ``ranges`` are its pairs of (sector, sectors), and ``changes`` the new
    contents. ``refused`` is the status that it must get, -1 if it has no byte for a
    status, or None if it is valid for a disk that is large enough. ``hole``: one
    data buffer is not guest RAM. ``backwards``: its device-writable buffers come
    first.
    """

    kind: int
    readable: bytes
    writable: int = 1
    ranges: Sequence[tuple[int, int]] = ()
    changes: Sequence[Change] = ()
    refused: int | None = None
    hole: bool = False
    backwards: bool = False


class Asker:
    """Makes requests for a disk in blocks of ``block`` sectors; ``features`` were negotiated."""

    def __init__(self, dice: Random, features: int, block: int, readonly: bool) -> None:
        self._dice = dice
        self._features = features
        self._block = block
        self._readonly = readonly
        self._next = 0
        good: list[tuple[Callable[[int], Ask], int]] = [
            (self._read, 30),
            (self._write, 36),
            (self._flush, 6),
            (self._discard, 4),
            (self._zeroes, 5),
            (self._identify, 3),
            (self._bad, 6),
        ]
        self._makers = [maker for maker, _ in good]
        self._weights = [weight for _, weight in good]

    def ask(self, capacity: int) -> Ask:
        """Any request, for a disk of about ``capacity`` sectors."""
        (maker,) = self._dice.choices(self._makers, self._weights)
        return maker(capacity)

    def _place(self, capacity: int, most: int) -> tuple[int, int]:
        """(sector, sectors): near earlier requests, or anywhere, sometimes beyond the end."""
        dice, block = self._dice, self._block
        blocks = capacity // block
        count = min(dice.choice((1, 1, 1, 2, 3, dice.randint(1, most))), blocks)
        chance = dice.random()
        if chance < 0.03:
            return (blocks - dice.randint(0, count)) * block, (count + 1) * block
        start = self._next // block
        if chance < 0.3:
            start = dice.randrange(min(8, blocks))
        elif chance < 0.55:
            start = dice.randrange(blocks)
        start = max(0, min(start, blocks - count))
        self._next = (start + count) * block
        return start * block, count * block

    def _most(self) -> int:
        """The largest number of blocks for the next request."""
        large = self._dice.random() < 0.03
        return max(1, (128 if large else 8) // self._block)

    def _read(self, capacity: int) -> Ask:
        sector, count = self._place(capacity, self._most())
        ranges = [(sector, count)]
        return Ask(VIRTIO_BLK_T_IN, _header(VIRTIO_BLK_T_IN, sector), count * SECTOR + 1, ranges)

    def _write(self, capacity: int) -> Ask:
        sector, count = self._place(capacity, self._most())
        zeros = self._dice.random() < 0.1
        data = bytes(count * SECTOR) if zeros else self._dice.randbytes(count * SECTOR)
        readable = _header(VIRTIO_BLK_T_OUT, sector) + data
        if self._readonly:
            return Ask(VIRTIO_BLK_T_OUT, readable, refused=VIRTIO_BLK_S_IOERR)
        contents = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
        changes = [Change(sector, contents)]
        return Ask(VIRTIO_BLK_T_OUT, readable, ranges=[(sector, count)], changes=changes)

    def _flush(self, capacity: int) -> Ask:
        return Ask(
            VIRTIO_BLK_T_FLUSH, _header(VIRTIO_BLK_T_FLUSH, self._dice.choice((0, capacity)))
        )

    def _discard(self, capacity: int) -> Ask:
        wanted = self._features & VIRTIO_BLK_F_DISCARD
        return self._ranges(VIRTIO_BLK_T_DISCARD, capacity, bool(wanted))

    def _zeroes(self, capacity: int) -> Ask:
        wanted = self._features & VIRTIO_BLK_F_WRITE_ZEROES
        return self._ranges(VIRTIO_BLK_T_WRITE_ZEROES, capacity, bool(wanted))

    def _ranges(self, kind: int, capacity: int, negotiated: bool) -> Ask:
        discard = kind == VIRTIO_BLK_T_DISCARD
        ranges = [self._place(capacity, 8) for _ in range(self._dice.choice((1, 1, 2, 4)))]
        data = b""
        for sector, count in ranges:
            data += pack("<QII", sector, count, 0 if discard else self._dice.randint(0, 1))
        readable = _header(kind, 0) + data
        if not negotiated:
            return Ask(kind, readable, refused=VIRTIO_BLK_S_UNSUPP)
        # A discarded range may have any content. Here it has its old content, or zeros.
        changes = [Change(sector, [ZEROS] * count, not discard) for sector, count in ranges]
        return Ask(kind, readable, ranges=ranges, changes=changes)

    def _identify(self, capacity: int) -> Ask:
        size = self._dice.choice((20, 20, 1, 7, 64))
        return Ask(VIRTIO_BLK_T_GET_ID, _header(VIRTIO_BLK_T_GET_ID, capacity), size + 1)

    def _bad(self, capacity: int) -> Ask:
        dice = self._dice
        kind = dice.choice((VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT))
        write = kind == VIRTIO_BLK_T_OUT
        data = dice.randbytes(SECTOR * self._block)
        good = _header(kind, 0) + (data if write else b"")
        size = 1 if write else len(data) + 1
        match dice.randrange(8):
            case 0:
                kind = dice.choice(NONSENSE)
                strange = _header(kind, 0) + good[HEADER_SIZE:]
                return Ask(kind, strange, size, refused=VIRTIO_BLK_S_UNSUPP)
            case 1:
                far = _header(kind, dice.choice(FAR)) + good[HEADER_SIZE:]
                return Ask(kind, far, size, refused=VIRTIO_BLK_S_IOERR)
            case 2:
                cut = dice.choice((1, 511))
                ragged = good[: len(good) - cut] if write else good
                return Ask(kind, ragged, size if write else size - cut, refused=VIRTIO_BLK_S_IOERR)
            case 3:
                short = good[: dice.randint(1, HEADER_SIZE - 1)]
                return Ask(-1, short, size, refused=VIRTIO_BLK_S_IOERR)
            case 4:
                return Ask(-1, good, 0, refused=-1)
            case 5:
                return Ask(-1, good, size, refused=VIRTIO_BLK_S_IOERR, backwards=True)
            case 6:
                return Ask(kind, good, size, refused=VIRTIO_BLK_S_IOERR, hole=True)
        kind = VIRTIO_BLK_T_DISCARD
        flags = pack("<QII", 0, self._block, 0x8000_0000)
        return Ask(kind, _header(kind, 0) + flags, refused=VIRTIO_BLK_S_UNSUPP)


def _header(kind: int, sector: int) -> bytes:
    return pack("<IIQ", kind, 0, sector)
