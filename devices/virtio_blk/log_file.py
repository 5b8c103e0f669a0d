"""A log of writes as a file: a line of JSON, and then the data of all writes.

A file is hostile input: each field is checked.
"""

import json
from pathlib import Path
from typing import Any, Final

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.observe.write_log import Entry, WriteKind, WriteLog
from pykvm.errors import UsageError, reason_of

FORMAT: Final = "pykvm-writes-1"
MOST_SECTORS: Final = 1 << 24
"""Sectors that all requests of a log change together: 8 GiB. Each takes memory when it is used."""
_NUMBERS: Final = ("began", "ended", "sent", "queue", "sector", "sectors")
_MOST: Final = 1 << 63


def save(log: WriteLog, path: Path | str) -> None:
    """Write ``log`` to the file ``path``. UsageError if it cannot be written."""
    entries = [
        [one.kind.value, *(getattr(one, name) for name in _NUMBERS), one.durable, one.label]
        for one in log.entries
    ]
    head = json.dumps({"format": FORMAT, "sectors": log.sectors, "entries": entries})
    try:
        with Path(path).open("wb") as file:
            file.write(head.encode() + b"\n")
            file.writelines(one.data for one in log.entries)
    except OSError as error:
        raise UsageError(f"the log {path} cannot be written: {reason_of(error)}") from None


def load(path: Path | str) -> WriteLog:
    """The log in the file ``path``. UsageError if it cannot be read, or is no log."""
    try:
        head, _, data = Path(path).read_bytes().partition(b"\n")
    except OSError as error:
        raise UsageError(f"the log {path} cannot be read: {reason_of(error)}") from None
    try:
        return _parsed(head, data)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a log of writes: {error}", "give a file that 'crash record' wrote"
        ) from None


def _parsed(head: bytes, data: bytes) -> WriteLog:
    found = json.loads(head)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    rows = found.get("entries")
    sectors = _whole(found.get("sectors"))
    if not isinstance(rows, list):
        raise ValueError("it has no entries")
    entries = []
    at = 0
    for row in rows:
        entry, at = _entry(row, data, at)
        entries.append(entry)
    if at != len(data):
        raise ValueError("its data has a different size")
    if sum(entry.sectors for entry in entries) > MOST_SECTORS:
        raise ValueError(f"it changes more than {MOST_SECTORS} sectors")
    return WriteLog(sectors, entries)


def _entry(row: Any, data: bytes, at: int) -> tuple[Entry, int]:
    if not isinstance(row, list) or len(row) != len(_NUMBERS) + 3:
        raise ValueError("an entry has a different form")
    kind, *numbers, durable, label = row
    if not isinstance(durable, bool) or not isinstance(label, str):
        raise ValueError("an entry has a different form")
    made = dict(zip(_NUMBERS, map(_whole, numbers), strict=True))
    end = at + made["sectors"] * SECTOR_SIZE if kind == WriteKind.WRITE.value else at
    entry = Entry(WriteKind(kind), **made, data=data[at:end], durable=durable, label=label)
    return entry, end


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError("a number is wrong")
    return value
