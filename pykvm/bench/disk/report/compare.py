"""Medians, spreads and ratios of runs. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median

from pykvm.bench.disk.sample import Run, Sample
from pykvm.bench.disk.workload import Workload


@dataclass(frozen=True, slots=True)
class Figures:
    """One workload under the configuration ``label`` of one tool: the medians of all runs, and the
    least and the most requests per second."""

    label: str
    median: Sample
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """pykvm's requests per second divided by the other tool's.

    ``median`` is the ratio of the medians, ``least`` and ``most`` the extremes over pairs of runs,
    and ``best`` the ratio of the best runs, which a busy host disturbs least.
    """

    median: float
    least: float
    most: float
    best: float


@dataclass(frozen=True, slots=True)
class Versus:
    """The other tool's best configuration for a workload, and pykvm's ratio to it."""

    tool: str
    figures: Figures
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class Row:
    """One workload in one ``cache`` mode: pykvm's figures, and each other tool that has some."""

    workload: Workload
    ours: Figures
    others: tuple[Versus, ...] = ()
    cache: str = ""


Group = Mapping[str, Sequence[Run]]
"""The runs of one tool by configuration."""


def middle(values: Iterable[float | None]) -> float | None:
    """The median of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def figures(label: str, samples: Sequence[Sample]) -> Figures:
    """The figures of ``samples``, which are of the same workload."""
    values = {
        field.name: middle(getattr(sample, field.name) for sample in samples)
        for field in fields(Sample)
    }
    speeds = [sample.iops for sample in samples]
    return Figures(label, Sample(**values), min(speeds), max(speeds))  # type: ignore[arg-type]


def rows(
    workloads: Sequence[Workload],
    ours: Sequence[Run],
    others: Mapping[str, Group],
    cache: str = "",
) -> list[Row]:
    """A row for each workload; ``others`` are the other tools by name.

    The configuration of each tool with the highest median counts, which favours that tool. Run i
    of pykvm is paired with run i of the other tool.
    """
    found = []
    for number, workload in enumerate(workloads):
        mine = _samples(ours, number)
        versus = (_versus(tool, mine, group, number) for tool, group in others.items())
        known = tuple(one for one in versus if one is not None)
        found.append(Row(workload, figures("", mine), known, cache))
    return found


def _versus(tool: str, mine: Sequence[Sample], group: Group, number: int) -> Versus | None:
    candidates = {label: _samples(runs, number) for label, runs in group.items()}
    candidates = {label: samples for label, samples in candidates.items() if samples}
    if not candidates:
        return None
    best = max(
        (figures(label, samples) for label, samples in candidates.items()),
        key=lambda found: found.median.iops,
    )
    pairs = [a.iops / b.iops for a, b in zip(mine, candidates[best.label], strict=True)]
    here = median(sample.iops for sample in mine)
    most = max(sample.iops for sample in mine)
    ratio = Ratio(here / best.median.iops, min(pairs), max(pairs), most / best.most)
    return Versus(tool, best, ratio)


def _samples(runs: Sequence[Run], number: int) -> list[Sample]:
    return [sample for run in runs if (sample := run.samples[number]) is not None]
