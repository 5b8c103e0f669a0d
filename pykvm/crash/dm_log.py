"""The format of Linux' dm-log-writes, which replay-log of xfstests reads and writes. Pure.

A log has entries of writes, discards, flushes and marks in the order in which they became stable.
All numbers are little-endian. The first block has the magic number, the version, the number of
entries and the size of a block. Each entry is a block with its header, followed by the data of a
write. The format is that of drivers/md/dm-log-writes.c.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind, WriteLog

MAGIC: Final = 0x6A736677736872
VERSION: Final = 1
_SUPER: Final = struct.Struct("<QQQI")
_PIECE: Final = 1 << 20
_HEADER: Final = struct.Struct("<QQQQ")


class Flags(IntFlag):
    """The flags of an entry."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    METADATA = 16


@dataclass(frozen=True, slots=True)
class DmEntry:
    """An entry. ``sector`` and ``sectors`` are in units of 512 bytes. A mark's text is ``data``."""

    sector: int
    sectors: int
    flags: Flags
    data: bytes = b""


def exported(log: WriteLog) -> Iterator[bytes]:
    """The bytes of the log in this format, in pieces. It ends with the mark ``end``.

    The driver in Linux sends a write that has to be stable at once (FUA) as a write and a flush.
    A flush that covers one write only is therefore written as that write with FUA, and a flush.
    """
    entries = [*_in_order(log), DmEntry(0, 0, Flags.MARK, b"end")]
    yield _SUPER.pack(MAGIC, VERSION, len(entries), SECTOR_SIZE).ljust(SECTOR_SIZE, b"\0")
    for one in entries:
        mark = Flags.MARK in one.flags
        header = _HEADER.pack(one.sector, one.sectors, one.flags, len(one.data) if mark else 0)
        if mark:
            header += one.data
        yield header.ljust(SECTOR_SIZE, b"\0")
        if not mark:
            yield from _content(one)


def _in_order(log: WriteLog) -> Iterator[DmEntry]:
    """The entries: each flush comes at its end, after the writes that it covers."""
    waiting: list[Entry] = []
    by_end = sorted((e for e in log.entries if e.ended != NEVER), key=lambda e: e.ended)
    for one in by_end:
        if one.kind is WriteKind.MARK:
            yield DmEntry(0, 0, Flags.MARK, one.label.encode()[: SECTOR_SIZE - 34])
        elif one.kind is WriteKind.FLUSH:
            covered = [write for write in waiting if write.ended < one.sent]
            waiting = [write for write in waiting if write.ended >= one.sent]
            alone = Flags.FUA if len(covered) == 1 else Flags(0)
            for write in sorted(covered, key=_began):
                yield _written(write, alone)
            yield DmEntry(0, 0, Flags.FLUSH)
        elif one.durable:
            yield _written(one, Flags.FUA)
        else:
            waiting.append(one)
    for write in sorted(waiting, key=_began):
        yield _written(write, Flags(0))


def _began(entry: Entry) -> int:
    """Writes of the same sectors take effect in this order (:mod:`pykvm.crash.model`)."""
    return entry.began


def _written(one: Entry, flags: Flags) -> DmEntry:
    if one.kind is WriteKind.DISCARD:
        return DmEntry(one.sector, one.sectors, Flags.DISCARD)
    return DmEntry(one.sector, one.sectors, flags, one.data)


def _content(one: DmEntry) -> Iterator[bytes]:
    """The data of an entry; zeros if it has none."""
    if one.data or Flags.DISCARD in one.flags:
        yield one.data
        return
    left = one.sectors * SECTOR_SIZE
    while left:
        size = min(left, _PIECE)
        yield bytes(size)
        left -= size


def parsed(content: bytes) -> list[DmEntry]:
    """The entries of a log in this format. ValueError if it is none, or cut off."""
    if len(content) < _SUPER.size:
        raise ValueError("it is too short for a dm-log-writes log")
    magic, version, count, block = _SUPER.unpack_from(content)
    if magic != MAGIC:
        raise ValueError("it is not a dm-log-writes log")
    if version != VERSION:
        raise ValueError(f"its version is {version}, not {VERSION}")
    if block not in (512, 1024, 2048, 4096):
        raise ValueError(f"its block size is {block}")
    per_block = block // SECTOR_SIZE
    made = []
    at = block
    for number in range(count):
        if at + block > len(content):
            raise ValueError(f"it ends before entry {number}")
        sector, sectors, bits, length = _HEADER.unpack_from(content, at)
        flags = Flags(bits & 0x1F)
        if Flags.MARK in flags:
            size = 0
            data = content[at + _HEADER.size : at + _HEADER.size + min(length, block - 34)]
        else:
            size = 0 if Flags.DISCARD in flags else sectors * block
            data = content[at + block : at + block + size]
        at += block + size
        if at > len(content):
            raise ValueError(f"it ends within entry {number}")
        made.append(DmEntry(sector * per_block, sectors * per_block, flags, data))
    return made


def imported(content: bytes, sectors: int) -> WriteLog:
    """The log in ``content``, of a disk with this number of sectors. ValueError.

    dm-log-writes records a flush with the writes that had ended when it was sent, and the writes
    in this order. So each entry of the result ends before the next one is sent.
    """
    entries: list[Entry] = []
    event = 0
    for one in parsed(content):
        if Flags.MARK in one.flags:
            label = one.data.decode("utf-8", "replace")
            entries.append(Entry(WriteKind.MARK, event, event, event, label=label))
            event += 1
            continue
        if Flags.FLUSH in one.flags:
            entries.append(Entry(WriteKind.FLUSH, event, event + 1, event))
            event += 2
        if one.sectors:
            kind = WriteKind.DISCARD if Flags.DISCARD in one.flags else WriteKind.WRITE
            fua = Flags.FUA in one.flags
            end = event + 1
            place = (one.sector, one.sectors)
            entries.append(Entry(kind, event, end, event, 0, *place, one.data, durable=fua))
            event += 2
    return WriteLog(sectors, entries)
