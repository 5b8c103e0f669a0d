"""Logs of writes for tests, and a slow answer to what may survive a power cut."""

import random
from itertools import product

from pykvm.crash.model import Model, Tear
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind, WriteLog

SECTORS = 16
CHANGES = (WriteKind.WRITE, WriteKind.ZEROES, WriteKind.DISCARD)
Content = frozenset[tuple[int, bytes]]
"""The sectors of a state that are not as they were when the log began."""


def base(sector: int) -> bytes:
    """A sector as it is when a log begins."""
    return bytes([255, sector]) * 256


def sector_data(number: int) -> bytes:
    """The content of one sector, which no other number has."""
    return number.to_bytes(2, "big") * 256


def random_log(seed: int, most: int = 6) -> WriteLog:
    """A log of at most ``most`` requests that change sectors, on two queues."""
    draw = random.Random(seed)
    open_requests: list[dict] = []
    done: list[Entry] = []
    seen, writes = [0, 0], 0
    for event in range(draw.randint(4, 22)):
        if open_requests and draw.random() < 0.5:
            one = open_requests.pop(draw.randrange(len(open_requests)))
            done.append(Entry(**one, ended=event))
        elif draw.random() < 0.1:
            done.append(Entry(WriteKind.MARK, event, event, event, label=f"mark {event}"))
        else:
            queue = draw.randrange(2)
            # A driver learns of events in their order, and late.
            seen[queue] = draw.randint(seen[queue], event)
            one = {"began": event, "sent": seen[queue], "queue": queue}
            if draw.random() < 0.4 or writes == most:
                one["kind"] = WriteKind.FLUSH
            else:
                one["kind"] = draw.choices(CHANGES, (8, 2, 1))[0]
                one["sectors"] = draw.randint(1, 2)
                one["sector"] = draw.randrange(5, 10)
                one["durable"] = draw.random() < 0.1
                if one["kind"] is WriteKind.WRITE:
                    one["data"] = b"".join(
                        sector_data(2 * event + i) for i in range(one["sectors"])
                    )
                writes += 1
            open_requests.append(one)
    done += [Entry(**one, ended=NEVER) for one in open_requests]
    return WriteLog(SECTORS, sorted(done, key=lambda entry: entry.began))


def legal_contents(log: WriteLog, cut: int, model: Model, tear: Tear) -> set[Content]:
    """Every legal content at ``cut``, word for word by the specification, and slowly."""
    before = [e for e in log.entries if e.began < cut and e.kind in CHANGES]
    flushes = [e for e in log.entries if e.kind is WriteKind.FLUSH and e.ended < cut]

    def stable(write: Entry) -> bool:
        if write.ended >= cut or write.kind is WriteKind.DISCARD:
            return False
        if write.durable:
            return True
        for flush in flushes:
            if write.ended < flush.sent:
                return True
            if model is not Model.VIRTIO and (
                write.ended < flush.began
                or (write.queue == flush.queue and write.began < flush.began)
            ):
                return True
        return False

    def units(write: Entry) -> list[list[int]]:
        every = list(range(write.sector, write.end))
        if tear is Tear.REQUEST or write.kind is WriteKind.DISCARD:
            return [every]
        size = 8 if tear is Tear.BLOCK else 1
        return [
            [s for s in every if s // size == unit] for unit in sorted({s // size for s in every})
        ]

    # A choice for each unit of each write in turn: a stable one survives, others may.
    written = [(write, unit) for write in before for unit in units(write)]
    options = [(True,) if stable(write) else (True, False) for write, _ in written]
    # A later stable write decides a sector, whether or not an earlier one survives there.
    found = set()
    for choice in product(*options):
        if model is Model.PREFIX and not _in_order(choice, options, written, log, cut, stable):
            continue
        content: dict[int, bytes] = {}
        for survives, (write, unit) in zip(choice, written, strict=True):
            if survives:
                content |= {sector: write.content(sector) for sector in unit}
        found.add(frozenset(content.items()))
    return found


def _in_order(choice, options, written, log, cut, stable) -> bool:
    """True if no volatile write survives one that is lost and that can still be seen."""
    lost = False
    for number, (survives, (write, unit)) in enumerate(zip(choice, written, strict=True)):
        if stable(write):
            continue
        hidden = all(
            any(
                stable(later) and later.sector <= sector < later.end
                for later, _ in written[number + 1 :]
                if later is not write
            )
            for sector in unit
        )
        if hidden:
            continue
        if survives and lost:
            return False
        lost = lost or not survives
    return True
