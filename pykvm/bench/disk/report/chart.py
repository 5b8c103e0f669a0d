"""Throughput and latency over queue depth, as an SVG drawing. Pure."""

from collections.abc import Callable, Sequence
from html import escape

from pykvm.bench.disk.report.compare import Figures, Row
from pykvm.errors import shown
from pykvm.svg.axes import linear_axis, log_axis, short
from pykvm.svg.drawing import head, legend

COLOURS = ("#1f6feb", "#d1495b", "#6a737d", "#2a9d8f")
"""The first is pykvm's."""
PLOT_WIDTH, PLOT_HEIGHT = 260, 150
LEFT, HEAD, GAP_X, GAP_Y = 70, 34, 90, 70
TITLE_HEIGHT = 30
BAND_HEIGHT = TITLE_HEIGHT + 2 * (PLOT_HEIGHT + GAP_Y)
COLUMNS = 3


def chart_of(rows: Sequence[Row], note: str = "") -> str:
    """Two diagrams for each workload and cache mode: requests per second, and median latency.

    ``note`` stands behind pykvm's name in the legend.
    """
    several = len({row.cache for row in rows}) > 1
    families: dict[str, list[Row]] = {}
    for row in rows:
        title = row.workload.family + (f", cache {row.cache}" if several else "")
        families.setdefault(title, []).append(row)
    names = ["pykvm", *dict.fromkeys(v.tool for row in rows for v in row.others)]
    columns = min(len(families), COLUMNS)
    width = LEFT + columns * (PLOT_WIDTH + GAP_X)
    height = HEAD + -(-len(families) // columns) * BAND_HEIGHT
    labels = [f"pykvm ({note})" if note else "pykvm", *names[1:]]
    entries = [(shown(label), COLOURS[i % len(COLOURS)], 2.5) for i, label in enumerate(labels)]
    parts = [*head(width, height), *legend(LEFT, 20, entries, size=13)]
    for number, (family, mine) in enumerate(families.items()):
        band, column = divmod(number, columns)
        x = LEFT + column * (PLOT_WIDTH + GAP_X)
        y = HEAD + band * BAND_HEIGHT + TITLE_HEIGHT
        title = f'<text x="{x}" y="{y - 12}" font-size="13" font-weight="bold">'
        parts.append(f"{title}{escape(family)}</text>")
        parts += _plot(x, y, names, mine, "requests per second", lambda f: f.median.iops)
        below = y + PLOT_HEIGHT + GAP_Y
        parts += _plot(
            x, below, names, mine, "median latency, µs", lambda f: f.median.p50, log=True
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _plot(
    x: float,
    y: float,
    names: Sequence[str],
    rows: Sequence[Row],
    title: str,
    value_of: Callable[[Figures], float],
    log: bool = False,
) -> list[str]:
    """One diagram with its upper left corner at (x, y), with a line for each of ``names``."""
    lines = {name: _points(name, rows, value_of) for name in names}
    values = [value for points in lines.values() for _, value in points]
    up = log_axis(values) if log else linear_axis(values)
    depths = sorted({row.workload.depth for row in rows})
    # Depths are usually powers of 2, so they are spaced evenly.
    across = {depth: (i + 0.5) / len(depths) for i, depth in enumerate(depths)}
    parts = [f'<text x="{x}" y="{y + PLOT_HEIGHT + 42}">{escape(title)} over queue depth</text>']
    for tick in up.ticks:
        at = y + PLOT_HEIGHT * (1 - up.place(tick))
        parts.append(
            f'<line x1="{x}" y1="{at:.1f}" x2="{x + PLOT_WIDTH}" y2="{at:.1f}" stroke="#d0d7de"/>'
        )
        parts.append(f'<text x="{x - 6}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for depth, place in across.items():
        at = x + PLOT_WIDTH * place
        parts.append(
            f'<text x="{at:.1f}" y="{y + PLOT_HEIGHT + 18}" text-anchor="middle">{depth}</text>'
        )
    for i, points in enumerate(lines.values()):
        places = [
            (x + PLOT_WIDTH * across[depth], y + PLOT_HEIGHT * (1 - up.place(value)))
            for depth, value in points
        ]
        parts += _line(places, COLOURS[i % len(COLOURS)])
    return parts


def _points(
    name: str, rows: Sequence[Row], value_of: Callable[[Figures], float]
) -> list[tuple[int, float]]:
    """The depth and the value of each row in which ``name`` has figures."""
    points = []
    for row in rows:
        figures = {"pykvm": row.ours} | {v.tool: v.figures for v in row.others}
        if name in figures:
            points.append((row.workload.depth, value_of(figures[name])))
    return sorted(points)


def _line(places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    return parts + [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in places
    ]
