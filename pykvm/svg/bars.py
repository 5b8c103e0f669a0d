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
_TOP = 50
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
    """The ``panels`` side by side under ``title``."""
    rows = max(len(panel.bars) for panel in panels)
    width = len(panels) * (_LABELS + _WIDTH + _GAP) + _GAP
    parts = head(width, _TOP + rows * _ROW + 60)
    parts.append(f'<text x="{_GAP / 2}" y="20" font-size="13" font-weight="bold">')
    parts[-1] += f"{escape(title)}</text>"
    for number, panel in enumerate(panels):
        parts += _panel(_GAP / 2 + number * (_LABELS + _WIDTH + _GAP), panel)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(x: float, panel: Panel) -> list[str]:
    values = [value for bar in panel.bars for value in (bar.value, bar.least, bar.most)]
    axis = log_axis(values) if panel.log else linear_axis(values)
    left, bottom = x + _LABELS, _TOP + len(panel.bars) * _ROW
    parts = [f'<text x="{left}" y="{_TOP - 8}" font-size="12">{escape(panel.title)}</text>']
    for tick in axis.ticks:
        at = left + _WIDTH * axis.place(tick)
        parts.append(f'<path d="M{at:.1f} {_TOP}V{bottom + 4}" stroke="#d0d7de"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{short(tick)}</text>'
        )
    for row, bar in enumerate(panel.bars):
        parts += _bar(left, _TOP + row * _ROW, bar, axis)
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
