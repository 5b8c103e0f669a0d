"""A drawing of each disk's operations: sector over time, as SVG. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final, NamedTuple

from pykvm.errors import UsageError, shown
from pykvm.svg.axes import Axis, linear_axis, short
from pykvm.svg.drawing import head, legend
from pykvm.trace import events
from pykvm.trace.reader import TEXT_MAX, Event

WIDTH, HEIGHT = 1000, 320
LEFT, TOP, RIGHT, BOTTOM = 80, 70, 20, 50
BAND = TOP + HEIGHT + BOTTOM
DISKS_MAX = 32
"""The most disks of a drawing; no machine has more."""

FLUSH, FAILED, STOPPED = "flush", "failed", "stop"
STYLES: Final = {
    # Drawn in this order, the last on top.
    FLUSH: ("flush", "#8c959f", 1),
    "read": ("read", "#54aeff", 2),
    "write": ("write", "#ff8182", 2),
    "discard": ("discard", "#c297ff", 2),
    "write-zeroes": ("write zeroes", "#4ac26b", 2),
    "other": ("other", "#1b7c83", 2),
    "read merged": ("read, merged", "#0550ae", 4),
    "write merged": ("write, merged", "#a40e26", 4),
    FAILED: ("failed", "#000000", 5),
    STOPPED: ("stop, resume", "#bf8700", 2),
}
"""The meaning of each style of line for the legend, its colour and its width."""


class _Mark(NamedTuple):
    """An operation, a stop or a resume: its style, its times, and its sectors."""

    style: str
    start_ns: int
    end_ns: int
    first: int
    last: int


@dataclass(slots=True)
class _Panel:
    """One disk."""

    path: str = ""
    marks: list[_Mark] = field(default_factory=list)


class _Place(NamedTuple):
    """A mark in the drawing: pixels from the upper left corner."""

    style: str
    left: int
    right: int
    bottom: int
    upper: int


def plot(trace: Iterable[Event]) -> str:
    """The drawing of ``trace``; UsageError if it has nothing to draw."""
    panels: dict[str, _Panel] = {}
    begin = end = -1
    for event in trace:
        begin = event.ns if begin < 0 else min(begin, event.ns)
        end = max(end, event.ns)
        if not event.disk:
            continue
        panel = panels.setdefault(event.disk, _Panel())
        if len(panels) > DISKS_MAX:
            raise UsageError(f"there are more than {DISKS_MAX} disks in the trace", "")
        if event.name == events.DISK:
            panel.path = event.text("path")
        elif event.name == events.COMPLETE:
            panel.marks.append(_mark(event))
        elif event.name in (events.STOP, events.RESUME):
            panel.marks.append(_Mark(STOPPED, event.ns, event.ns, 0, 0))
    if not any(mark.style != STOPPED for panel in panels.values() for mark in panel.marks):
        raise UsageError(
            "there are no operations in the trace", f"trace {events.COMPLETE}, or everything"
        )
    begin = min([begin, *(mark.start_ns for panel in panels.values() for mark in panel.marks)])
    return _drawing(panels, begin, end)


def _mark(event: Event) -> _Mark:
    """The mark of a completed operation."""
    kind = event.text("kind")
    sector = event.whole("sector")
    if event.whole("errno"):
        style = FAILED
    elif event.count("requests") > 1 and f"{kind} merged" in STYLES:
        style = f"{kind} merged"
    else:
        style = kind if kind in STYLES else "other"
    start = max(0, event.ns - event.whole("took_ns"))
    return _Mark(style, start, event.ns, sector, sector + event.whole("length") // 512)


def _drawing(panels: dict[str, _Panel], begin: int, end: int) -> str:
    width, height = LEFT + WIDTH + RIGHT, BAND * len(panels)
    unit, scale = next(
        (pair for pair in (("s", 1e9), ("ms", 1e6)) if end - begin >= pair[1]), ("µs", 1e3)
    )
    across = _axis((end - begin) / scale)
    parts = head(width, height)
    for number, (name, panel) in enumerate(panels.items()):
        top = BAND * number + TOP
        up = _axis(max((mark.last for mark in panel.marks), default=1))
        title = shown(f"{name} {panel.path}".strip(), most=TEXT_MAX)
        parts.append(
            f'<text x="{LEFT}" y="{top - 44}" font-size="14" font-weight="bold">'
            f"{escape(title)}</text>"
        )
        parts += legend(LEFT, top - 22, _legend_entries(panel))
        parts += _grid(top, across, up, f"time, {unit}")
        places = [
            _Place(
                mark.style,
                LEFT + round(across.place((mark.start_ns - begin) / scale) * WIDTH),
                LEFT + round(across.place((mark.end_ns - begin) / scale) * WIDTH),
                top + round((1 - up.place(mark.first)) * HEIGHT),
                top + round((1 - up.place(mark.last)) * HEIGHT),
            )
            for mark in panel.marks
        ]
        parts += _paths(top, places)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axis(end: float) -> Axis:
    """An axis from 0 to ``end``, which need not be a round number."""
    end = end or 1.0
    ticks = [tick for tick in linear_axis([end]).ticks if tick <= end]
    return Axis(lambda value: value / end, ticks)


def _legend_entries(panel: _Panel) -> Iterator[tuple[str, str, float]]:
    """The styles of the marks in ``panel``, with the number of marks."""
    counts = Counter(mark.style for mark in panel.marks)
    for style, (words, colour, width) in STYLES.items():
        if count := counts[style]:
            yield f"{words} ({count})", colour, width


def _grid(top: int, across: Axis, up: Axis, title: str) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = top + HEIGHT * (1 - up.place(tick))
        parts.append(f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in across.ticks:
        x = LEFT + WIDTH * across.place(tick)
        y = top + HEIGHT + 16
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{LEFT - 70}" y="{top - 8}">sector</text>')
    y = top + HEIGHT + 34
    parts.append(f'<text x="{LEFT + WIDTH}" y="{y}" text-anchor="end">{title}</text>')
    return parts


def _paths(top: int, places: Sequence[_Place]) -> list[str]:
    """A path for each style, with a piece for each mark; identical pieces appear once."""
    pieces: dict[str, dict[str, None]] = {style: {} for style in STYLES}
    for style, left, right, bottom, upper in places:
        if style in (FLUSH, STOPPED):
            piece = f"M{right} {top}v{HEIGHT}"
        elif bottom - upper > max(2, right - left):
            piece = f"M{right} {bottom}V{upper}"
        else:
            piece = f"M{left} {bottom}h{max(2, right - left)}"
        pieces[style][piece] = None
    return [
        f'<path d="{"".join(pieces[style])}" stroke="{colour}" stroke-width="{width}" fill="none"/>'
        for style, (_, colour, width) in STYLES.items()
        if pieces[style]
    ]
