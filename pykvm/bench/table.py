"""What a measurement came to, as text. Pure."""

from collections.abc import Sequence

from pykvm.bench.compare import Row
from pykvm.bench.sample import Run


def tables(rows: Sequence[Row]) -> str:
    """Our own figures, and then a comparison with each other tool."""
    parts = [_own(rows)]
    names = list(dict.fromkeys(versus.tool for row in rows for versus in row.others))
    parts += [_against(name, rows) for name in names]
    return "\n\n".join(parts)


def _own(rows: Sequence[Row]) -> str:
    head = ["workload", "depth", "IOPS", "least", "most", "MB/s"]
    head += ["p50 µs", "p99", "p99.9", "max", "CPU µs"]
    lines = []
    for row in rows:
        found = row.ours.median
        lines.append(
            [
                *(row.workload.family, str(row.workload.depth), whole(found.iops)),
                *(whole(row.ours.least), whole(row.ours.most)),
                number(found.rate(row.workload)),
                *(number(x) for x in (found.p50, found.p99, found.p999, found.longest, found.cpu)),
            ]
        )
    return align(head, lines)


def _against(name: str, rows: Sequence[Row]) -> str:
    head = ["workload", "depth", "pykvm IOPS", f"{name} IOPS", "ratio", "of pairs", "of best"]
    head += ["p50 µs", "theirs", "CPU µs", "theirs", f" {name}'s best configuration"]
    lines = []
    for row in rows:
        for versus in row.others:
            if versus.tool != name:
                continue
            ours, theirs, ratio = row.ours.median, versus.figures.median, versus.ratio
            lines.append(
                [
                    *(row.workload.family, str(row.workload.depth)),
                    *(whole(ours.iops), whole(theirs.iops), f"{ratio.median:.2f}"),
                    *(f"{ratio.least:.2f}-{ratio.most:.2f}", f"{ratio.best:.2f}"),
                    *(number(x) for x in (ours.p50, theirs.p50, ours.cpu, theirs.cpu)),
                    " " + (versus.figures.label or "-"),
                ]
            )
    return align(head, lines)


def cost_of(name: str, start: float | None, memory: float | None) -> str:
    """A line about one configuration of a tool: its start-up time and memory, where known."""
    parts = []
    if start is not None:
        parts.append(f"first guest instructions after {start:.2f} s")
    if memory is not None:
        parts.append(f"{memory / (1 << 20):.1f} MiB beyond guest RAM")
    return f"{name}: {', '.join(parts)}" if parts else ""


def start_and_memory(runs: Sequence[Run]) -> tuple[list[float], list[int]]:
    """Those that are known."""
    starts = [run.start for run in runs if run.start is not None]
    return starts, [run.memory for run in runs if run.memory is not None]


def align(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns under ``head``: the first and any that begins with a space to the left."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    left = [i == 0 or name.startswith(" ") for i, name in enumerate(head)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in [head, *lines]
    )


def whole(value: float) -> str:
    """Without a fraction, thousands set apart."""
    return f"{value:,.0f}".replace(",", " ")


def number(value: float | None) -> str:
    """With about three digits; a dash if not known."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else whole(value)
