"""The comparison of configurations: ratios, a table and a drawing. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pykvm.bench.columns import align, number, whole
from pykvm.devices.virtio_blk.observe.stats import classic_line
from pykvm.svg.bars import Bar, Panel, bars_of


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: its time in seconds, and the disk's classic counters."""

    seconds: float
    counters: Mapping[str, int]

    def mean(self, kind: str) -> float | None:
        """The mean time in µs of the requests of ``kind``: rd, wr or flush; None without any."""
        count = self.counters[f"{kind}_operations"]
        return self.counters[f"{kind}_total_time_ns"] / count / 1000 if count else None

    @property
    def operations(self) -> int:
        """The reads and writes that were left for the host after merging."""
        counters = self.counters
        return sum(
            counters[f"{kind}_operations"] - counters[f"{kind}_merged"] for kind in ("rd", "wr")
        )


Runs = Mapping[str, Sequence[Sample]]
"""The samples of each configuration. Sample i of each belongs to the same round."""


def ratio(runs: Runs, label: str, value_of: Callable[[Sample], float | None]) -> str:
    """The value of ``label`` divided by that of the first configuration, with its spread.

    It is the ratio of the medians, and the least and the most of the ratios in one round.
    """
    first = next(iter(runs.values()))
    pairs = [
        b / a
        for one, two in zip(first, runs[label], strict=True)
        if (a := value_of(one)) and (b := value_of(two)) is not None
    ]
    if not pairs:
        return "-"
    return f"{median(pairs):.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


def best(runs: Runs, label: str) -> str:
    """The least time of ``label`` divided by that of the first: a busy host disturbs it least."""
    first, mine = (
        min(one.seconds for one in samples) for samples in (next(iter(runs.values())), runs[label])
    )
    return f"{mine / first:.2f}" if first else "-"


def text_of(runs: Runs, load: str, note: str) -> str:
    """The table, the ratios to the first configuration, and the statistics line of each."""
    labels = list(runs)
    head = [load, "seconds", "reads", "merged", "writes", "merged", "flushes", "host ops"]
    head += ["read µs", "write µs", "flush µs"]
    lines = [[label, *_figures(runs[label])] for label in labels]
    parts = [align(head, lines)]
    if len(labels) > 1:
        head = [
            f"ratio to {labels[0]}",
            "seconds",
            "of best",
            "host ops",
            "read time",
            "write time",
        ]
        lines = [
            [
                label,
                ratio(runs, label, lambda one: one.seconds),
                best(runs, label),
                ratio(runs, label, lambda one: one.operations),
                ratio(runs, label, lambda one: one.mean("rd")),
                ratio(runs, label, lambda one: one.mean("wr")),
            ]
            for label in labels[1:]
        ]
        parts.append(align(head, lines))
    middles = [classic_line(label, _middle(runs[label]).counters) for label in labels]
    parts += ["\n".join(middles), note]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figures(samples: Sequence[Sample]) -> list[str]:
    middle = {
        name: whole(median(one.counters[name] for one in samples)) for name in samples[0].counters
    }
    times = [
        number(median(known) if (known := _known(samples, kind)) else None)
        for kind in ("rd", "wr", "flush")
    ]
    return [
        f"{median(one.seconds for one in samples):.3f}",
        *(middle["rd_operations"], middle["rd_merged"]),
        *(middle["wr_operations"], middle["wr_merged"], middle["flush_operations"]),
        whole(median(one.operations for one in samples)),
        *times,
    ]


def _known(samples: Sequence[Sample], kind: str) -> list[float]:
    return [value for one in samples if (value := one.mean(kind)) is not None]


def _middle(samples: Sequence[Sample]) -> Sample:
    """The run with the median time (of two, the faster)."""
    return sorted(samples, key=lambda one: one.seconds)[(len(samples) - 1) // 2]


def chart_of(runs: Runs, load: str) -> str:
    """Operations on the host, the time of a write, and the whole time, of each configuration."""

    def bars(value_of: Callable[[Sample], float | None]) -> list[Bar]:
        found = []
        for label, samples in runs.items():
            values = [value for one in samples if (value := value_of(one)) is not None]
            if values:
                found.append(Bar(label, median(values), min(values), max(values)))
        return found

    panels = [
        Panel("operations on the host", bars(lambda one: one.operations)),
        Panel("mean time of a write, µs", bars(lambda one: one.mean("wr"))),
        Panel("mean time of a read, µs", bars(lambda one: one.mean("rd"))),
        Panel("seconds", bars(lambda one: one.seconds)),
    ]
    return bars_of(f"load: {load}", [panel for panel in panels if panel.bars])
