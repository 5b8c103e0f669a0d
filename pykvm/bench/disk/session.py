"""A whole session: every tool in turn, run after run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pykvm.bench.disk.busy import BusyLoops
from pykvm.bench.disk.noise import Noise, NoiseMeter
from pykvm.bench.disk.report.compare import Row, rows
from pykvm.bench.disk.sample import Run
from pykvm.bench.disk.tools.base import Job, Tool
from pykvm.bench.image import settle
from pykvm.kvm.system import Kvm

Report = Callable[[str], None]
"""Called with a few words on the progress."""


@dataclass(slots=True)
class Measurement:
    """A job in one cache mode, and the tools that carry it out, pykvm first.

    ``runs`` has the runs of each tool, in the order of ``tools``.
    """

    job: Job
    tools: Sequence[Tool]
    runs: list[list[Run]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = self.runs or [[] for _ in self.tools]

    def rows(self) -> list[Row]:
        """A row for each workload."""
        others: dict[str, dict[str, list[Run]]] = {}
        for tool, runs in list(zip(self.tools, self.runs, strict=True))[1:]:
            name = f"another {tool.name}" if tool.name == self.tools[0].name else tool.name
            others.setdefault(name, {})[tool.label] = runs
        return rows(self.job.workloads, self.runs[0], others, self.job.cache.value)


@dataclass(slots=True)
class Session:
    """All measurements, one for each cache mode; the other work of the host; and the number of
    ``busy`` loops."""

    parts: Sequence[Measurement]
    noise: Noise
    busy: int = 0

    def rows(self) -> list[Row]:
        """The rows of all measurements."""
        return [row for part in self.parts for row in part.rows()]


def measure(parts: Sequence[Measurement], runs: int, busy: BusyLoops, report: Report) -> Session:
    """Run the job of each of ``parts`` under each of its tools, one after the other, ``runs``
    times over.

    The tools take turns, so that other work of the host affects all of them alike. A first round
    warms the caches up and does not count, unless ``runs`` is 1. Each tool begins with the page
    cache as the mode needs it, and without dirty pages of the tool before it.
    """
    meter = NoiseMeter(busy.cpu_time)
    warm_up = 1 if runs > 1 else 0
    for number in range(runs + warm_up):
        which = f"run {number - warm_up + 1} of {runs}" if number >= warm_up else "warm-up"
        for part in parts:
            label = which
            if len(parts) > 1:
                label += f", cache {part.job.cache.value}"
            found = _round(part, number + 1, label, report)
            busy.cpu_time()  # raises now if a loop has ended, not after all rounds
            if number >= warm_up:
                for runs_of_tool, run in zip(part.runs, found, strict=True):
                    runs_of_tool.append(run)
    return Session(parts, meter.read(), len(busy))


def _round(measurement: Measurement, seed: int, which: str, report: Report) -> list[Run]:
    """One run of each tool."""
    found: list[list[Run]] = [[] for _ in measurement.tools]
    for part in measurement.job.parts():
        for tool, done in zip(measurement.tools, found, strict=True):
            done.append(_run(part, tool, seed, which, report))
    return [_together(done) for done in found]


def _run(part: Job, tool: Tool, seed: int, which: str, report: Report) -> Run:
    label = f"{which}, {tool.name} {tool.label}".strip()
    report(f"{label}: preparing the page cache")
    for disk in part.disks:
        settle(disk, part.size, part.cache)

    def progress(index: int) -> None:
        workload = part.workloads[index]
        report(f"{label}: {workload.family}, depth {workload.depth}")

    report(f"{label}: start")
    return tool.run(part, seed, progress)


def _together(parts: Sequence[Run]) -> Run:
    """One run with the samples of all ``parts``; start and memory are those of the first."""
    return replace(parts[0], samples=tuple(sample for run in parts for sample in run.samples))


def guest_tsc_khz() -> int:
    """The frequency of a guest's clock on this host, from KVM; HostError if there is no KVM."""
    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return vcpu.tsc_khz()
