"""The frame of a drawing: its first elements, and a legend. Pure."""

from collections.abc import Iterable
from html import escape

_LINE_WIDTH = 20
_GAP = 20


def head(width: int, height: int) -> list[str]:
    """The first elements of a drawing of ``width`` by ``height`` pixels: small text on white."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#24292f">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]


def legend(x: int, y: int, entries: Iterable[tuple[str, str, float]], size: int = 11) -> list[str]:
    """Lines and their meanings, in a row that begins at (``x``, ``y``).

    An entry is the text, and the colour and width of its line in the drawing. ``size`` is the
    text's, in pixels.
    """
    parts = []
    for text, colour, width in entries:
        parts.append(f'<path d="M{x} {y}h{_LINE_WIDTH}" stroke="{colour}" stroke-width="{width}"/>')
        text_x = x + _LINE_WIDTH + 6
        parts.append(f'<text x="{text_x}" y="{y + 4}" font-size="{size}">{escape(text)}</text>')
        x = text_x + _GAP + round(0.55 * size * len(text))
    return parts
