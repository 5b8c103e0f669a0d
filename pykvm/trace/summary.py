"""A summary of a trace, in words and figures. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pykvm.errors import shown
from pykvm.trace import events
from pykvm.trace.events import DEVICE
from pykvm.trace.reader import TEXT_MAX, Event, Reader

NOTABLE: Final = frozenset(
    {
        events.NEGOTIATE,
        events.ACTIVATE,
        events.RESET,
        events.CACHE,
        events.RESIZE,
        events.BROKEN,
        events.REFUSE,
        events.RETRY,
        events.ERROR,
        events.STOP,
        events.RESUME,
    }
)
"""The events that a report lists one by one."""
NOTABLE_MAX = 50
"""The most notable events of a report, because a guest can cause any number."""
PERCENTILES: Final = (50, 90, 99, 100)
_HEADINGS: Final = ("", "requests", "bytes", "merged", "failed", "p50", "p90", "p99", "max")


@dataclass(slots=True)
class Kind:
    """The executed requests of one kind, their results and their times."""

    bytes: int = 0
    merged: int = 0
    failed: int = 0
    took_ns: list[int] = field(default_factory=list)


@dataclass(slots=True)
class DiskSummary:
    """One disk. ``merged`` operations carry out several requests each, at most ``most``."""

    name: str
    path: str = ""
    sectors: int = 0
    kinds: dict[str, Kind] = field(default_factory=dict)
    taken: int = 0
    operations: int = 0
    merged: int = 0
    most: int = 0
    refused: int = 0
    retries: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def kind(self, name: str) -> Kind:
        """The requests of the kind ``name``; there may be none."""
        return self.kinds.setdefault(name, Kind())

    @property
    def answered(self) -> int:
        """The number of requests that were executed, with or without success."""
        return sum(len(kind.took_ns) for kind in self.kinds.values())


@dataclass(slots=True)
class Summary:
    """A whole trace. ``notable`` has the first of its ``notables`` notable events."""

    begin_ns: int = 0
    end_ns: int = 0
    count: int = 0
    complete: bool = False
    cut: bool = False
    disks: dict[str, DiskSummary] = field(default_factory=dict)
    notable: list[Event] = field(default_factory=list)
    notables: int = 0


def summarize(reader: Reader) -> Summary:
    """The summary of all events of ``reader``; UsageError if they are not a trace."""
    made = Summary()
    for event in reader:
        made.begin_ns = min(made.begin_ns, event.ns) if made.count else event.ns
        made.end_ns = max(made.end_ns, event.ns)
        made.count += 1
        if event.name in NOTABLE:
            made.notables += 1
            if made.notables <= NOTABLE_MAX:
                made.notable.append(event)
        if event.disk:
            _count(made.disks.setdefault(event.disk, DiskSummary(event.disk)), event)
    made.complete, made.cut = reader.complete, reader.cut
    return made


def _count(disk: DiskSummary, event: Event) -> None:
    match event.name:
        case events.DISK:
            disk.path, disk.sectors = event.text("path"), event.whole("sectors")
        case events.REQUEST:
            disk.taken += 1
        case events.MERGE:
            disk.kind(event.text("kind")).merged += event.count("requests") - 1
        case events.SUBMIT:
            members = event.count("requests")
            disk.operations += 1
            disk.merged += members > 1
            disk.most = max(disk.most, members)
        case events.DONE:
            kind = disk.kind(event.text("kind"))
            kind.took_ns.append(event.whole("took_ns"))
            if event.whole("errno"):
                kind.failed += 1
            else:
                kind.bytes += event.whole("length")
        case events.REFUSE:
            disk.refused += 1
        case events.RETRY:
            disk.retries += 1
        case events.ERROR:
            error = f"{event.text('kind')} {event.text('error')} {event.text('action')}"
            disk.errors[error] += 1


def report(summary: Summary) -> str:
    """``summary`` as printable text for people."""
    lines = [f"{_plural(summary.count, 'event')} in {_time(summary.end_ns - summary.begin_ns)}"]
    if summary.cut:
        lines.append("the last line is cut short: pykvm was killed while it wrote")
    elif not summary.complete:
        lines.append("the end is missing: pykvm was killed, or could not write any more")
    for disk in summary.disks.values():
        lines += ["", *_disk_lines(disk)]
    if summary.notable:
        lines += ["", "notable events, by the time after the first event:"]
        lines += [_notable_line(event, summary.begin_ns) for event in summary.notable]
    if summary.notables > len(summary.notable):
        lines.append(f"  … and {summary.notables - len(summary.notable)} more")
    return "\n".join(lines) + "\n"


def _disk_lines(disk: DiskSummary) -> list[str]:
    title = shown(disk.name, most=TEXT_MAX)
    if disk.path:
        title += f": {shown(disk.path, most=TEXT_MAX)}, {_bytes(disk.sectors * 512)}"
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for name, kind in sorted(disk.kinds.items()):
        if kind.took_ns:
            times = [_time(ns) for ns in percentiles(kind.took_ns, PERCENTILES)]
            counts = (str(len(kind.took_ns)), _bytes(kind.bytes), str(kind.merged))
            rows.append((shown(name, most=TEXT_MAX), *counts, str(kind.failed), *times))
    lines = [title, *_table(rows)] if len(rows) > 1 else [title]
    if disk.operations:
        several = f", {disk.merged} of them for several requests (up to {disk.most})"
        lines.append(f"  {_plural(disk.operations, 'operation')}{several if disk.merged else ''}")
    if disk.refused:
        lines.append(f"  {_plural(disk.refused, 'request')} refused: the guest made them invalid")
    if disk.retries:
        lines.append(f"  {_plural(disk.retries, 'operation')} tried again")
    if disk.answered and disk.taken > disk.answered:
        lines.append(f"  {_plural(disk.taken - disk.answered, 'request')} never answered")
    lines += [
        f"  {shown(error, most=TEXT_MAX)}: {count}" for error, count in disk.errors.most_common(20)
    ]
    return lines


def _notable_line(event: Event, begin_ns: int) -> str:
    name = event.name.removeprefix("virtio_blk.")
    where = event.disk if event.queue == DEVICE else f"{event.disk} queue {event.queue}"
    fields = " ".join(f"{key}={_value_text(value)}" for key, value in event.fields.items())
    text = shown(f"{where}  {name}  {fields}".rstrip(), most=2 * TEXT_MAX)
    return f"  {(event.ns - begin_ns) / 1e9:12.6f} s  {text}"


def _value_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def percentiles(values: Sequence[int], percents: Iterable[int]) -> list[int]:
    """For each P of ``percents``, the least value that P % of ``values`` do not exceed."""
    ordered = sorted(values)
    return [ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in percents]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Right-aligned columns, except for the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _time(ns: int) -> str:
    for limit, unit in ((10**9, "s"), (10**6, "ms"), (10**3, "µs")):
        if ns >= limit:
            return f"{ns / limit:.3g} {unit}"
    return f"{ns} ns"
