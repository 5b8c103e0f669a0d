"""The results of a measurement as text."""

from collections.abc import Sequence

from pykvm.bench.columns import align, number, whole
from pykvm.bench.disk.report.compare import Row, middle
from pykvm.bench.disk.session import Measurement, Session
from pykvm.bench.disk.tools.process import Ram

_LOAD = ("workload", "depth")


def as_text(session: Session) -> str:
    """The whole text. If there are several cache modes, each has a heading."""
    several = len(session.parts) > 1
    blocks = []
    for part in session.parts:
        if several:
            blocks.append(f"cache {part.job.cache.value}")
        blocks.append(tables(part.rows()))
        blocks.append("\n".join(_costs(part)))
    noise = str(session.noise)
    if session.busy:
        noise = f"{beside(session.busy)}, with {session.noise.busy:.2f} CPUs; {noise}"
    if several:
        blocks.append(noise)
    else:
        blocks[-1] += f"\n{noise}"
    return "\n\n".join(blocks) + "\n"


def beside(busy: int) -> str:
    """A phrase for ``busy`` busy loops beside the measurement."""
    return f"beside {busy} busy loop{'' if busy == 1 else 's'}"


def _costs(part: Measurement) -> list[str]:
    """A line for each tool with a start-up time, memory or a note."""
    lines = []
    for tool, runs in zip(part.tools, part.runs, strict=True):
        start = middle(run.start for run in runs)
        memory = middle(run.memory for run in runs)
        ram = next((run.ram for run in reversed(runs) if run.ram), None)
        name = f"{tool.name} {tool.label}".strip()
        lines.append(cost_of(name, start, memory, ram, tool.note(part.job)))
    return [line for line in lines if line]


def tables(rows: Sequence[Row]) -> str:
    """pykvm's figures, a comparison with each other tool, and the exits if there are any."""
    parts = [_own(rows)]
    names = list(dict.fromkeys(versus.tool for row in rows for versus in row.others))
    parts += [_against(name, rows) for name in names]
    exits = _exits(rows)
    if exits:
        parts.append(align([*_LOAD, "of", "exits/s", "p50 µs", "p99", "p99.9", "max"], exits))
    return "\n\n".join(parts)


def _own(rows: Sequence[Row]) -> str:
    head = [*_LOAD, "IOPS", "least", "most", "MB/s"]
    head += ["p50 µs", "p99", "p99.9", "max", "CPU µs", "notif/1000", "irq/1000"]
    lines = []
    for row in rows:
        found = row.ours.median
        lines.append(
            [
                *(*_load(row), whole(found.iops)),
                *(whole(row.ours.least), whole(row.ours.most)),
                number(found.rate(row.workload)),
                *(number(x) for x in (found.p50, found.p99, found.p999, found.longest, found.cpu)),
                *(_per_thousand(x) for x in (found.notifications, found.interrupts)),
            ]
        )
    return align(head, lines)


def _against(name: str, rows: Sequence[Row]) -> str:
    head = [*_LOAD, "pykvm IOPS", f"{name} IOPS", "ratio", "of pairs", "of best"]
    head += ["p50 µs", "theirs", "CPU µs", "theirs", f" {name}'s best configuration"]
    lines = []
    for row in rows:
        for versus in row.others:
            if versus.tool != name:
                continue
            ours, theirs, ratio = row.ours.median, versus.figures.median, versus.ratio
            lines.append(
                [
                    *_load(row),
                    *(whole(ours.iops), whole(theirs.iops), f"{ratio.median:.2f}"),
                    *(f"{ratio.least:.2f}-{ratio.most:.2f}", f"{ratio.best:.2f}"),
                    *(number(x) for x in (ours.p50, theirs.p50, ours.cpu, theirs.cpu)),
                    " " + (versus.figures.label or "-"),
                ]
            )
    return align(head, lines)


def _exits(rows: Sequence[Row]) -> list[list[str]]:
    lines = []
    for row in rows:
        found = {"pykvm": row.ours} | {versus.tool: versus.figures for versus in row.others}
        for tool, figures in found.items():
            if (rate := figures.median.exits) is not None:
                sample = figures.median
                times = (sample.exit_p50, sample.exit_p99, sample.exit_p999, sample.exit_longest)
                lines.append([*_load(row), tool, whole(rate), *(number(x) for x in times)])
    return lines


def _load(row: Row) -> tuple[str, str]:
    return row.workload.family, str(row.workload.depth or "-")


def _per_thousand(value: float | None) -> str:
    return number(None if value is None else 1000 * value)


def cost_of(
    name: str,
    start: float | None,
    memory: float | None,
    ram: Ram | None = None,
    note: str = "",
) -> str:
    """A line about one configuration of a tool: its start-up time, its memory, its VM's RAM and a
    note, as far as they are known."""
    parts = []
    if start is not None:
        parts.append(f"first guest instructions after {start:.2f} s")
    if memory is not None:
        parts.append(f"{memory / (1 << 20):.1f} MiB beyond guest RAM")
    parts += [words for words in (str(ram or ""), note) if words]
    return f"{name}: {', '.join(parts)}" if parts else ""
