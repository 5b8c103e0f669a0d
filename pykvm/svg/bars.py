"""Horizontal bars with their values and spreads, as an SVG drawing. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pykvm.svg.axes import Axis, linear_axis, log_axis, short
from pykvm.svg.drawing import head

_ROW = 18
_LABELS = 190
_WIDTH = 300
_GAP = 40
_TITLE, _HEAD, _BELOW = 30, 30, 70
"""The heights of the title, of a panel's own title, and of all but the bars of a panel."""
_COLUMNS = 2
_COLOURS = ("#1f6feb", "#d1495b", "#2a9d8f", "#6a737d")


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its label, the least and the most of all runs, and its colour's number."""

    label: str
    value: float
    least: float
    most: float
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars under a title; ``log``: their axis is logarithmic."""

    title: str
    bars: Sequence[Bar]
    log: bool = False


def bars_of(title: str, panels: Sequence[Panel]) -> str:
    """The ``panels`` under ``title``, two in a row."""
    rows = [panels[first : first + _COLUMNS] for first in range(0, len(panels), _COLUMNS)]
    heights = [max(len(panel.bars) for panel in row) * _ROW + _BELOW for row in rows]
    width = min(_COLUMNS, len(panels)) * (_LABELS + _WIDTH + _GAP) + _GAP
    parts = head(width, _TITLE + sum(heights))
    parts.append(
        f'<text x="{_GAP // 2}" y="22" font-size="13" font-weight="bold">{escape(title)}</text>'
    )
    top = _TITLE
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            parts += _panel(_GAP // 2 + column * (_LABELS + _WIDTH + _GAP), top + _HEAD, panel)
        top += height
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(x: int, y: int, panel: Panel) -> list[str]:
    """A panel whose first bar is at height ``y``."""
    values = [value for bar in panel.bars for value in (bar.value, bar.least, bar.most)]
    axis = log_axis(values) if panel.log else linear_axis(values)
    left, bottom = x + _LABELS, y + len(panel.bars) * _ROW
    parts = [f'<text x="{left}" y="{y - 8}" font-size="12">{escape(panel.title)}</text>']
    for tick in axis.ticks:
        at = left + _WIDTH * axis.place(tick)
        parts.append(f'<path d="M{at:.1f} {y}V{bottom + 4}" stroke="#d0d7de"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{short(tick)}</text>'
        )
    for row, bar in enumerate(panel.bars):
        parts += _bar(left, y + row * _ROW, bar, axis)
    return parts


def _bar(x: float, y: float, bar: Bar, axis: Axis) -> list[str]:
    end, least, most = (
        x + _WIDTH * max(0.0, axis.place(value)) for value in (bar.value, bar.least, bar.most)
    )
    colour = _COLOURS[bar.colour % len(_COLOURS)]
    parts = [
        f'<text x="{x - 6}" y="{y + 13}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect x="{x}" y="{y + 3}" width="{max(1.0, end - x):.1f}" height="{_ROW - 6}" '
        f'fill="{colour}" fill-opacity="0.75"/>',
    ]
    if bar.most > bar.least:
        middle = y + _ROW / 2
        parts.append(
            f'<path d="M{least:.1f} {middle}H{most:.1f}M{least:.1f} {y + 5}v8M{most:.1f} {y + 5}v8"'
            ' stroke="#24292f"/>'
        )
    return parts
