"""A whole measurement: every tool in turn, run after run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pykvm.bench.compare import Row, rows
from pykvm.bench.noise import Noise, NoiseMeter
from pykvm.bench.sample import Run
from pykvm.bench.tool import Job, Tool
from pykvm.kvm.system import Kvm

Report = Callable[[str], None]
"""Called with what is going on, a few words."""


@dataclass(slots=True)
class Measurement:
    """What came out: for each tool its runs, in the order of ``tools``; ours is the first.

    ``noise`` is what else the host did meanwhile.
    """

    job: Job
    tools: Sequence[Tool]
    noise: Noise
    runs: list[list[Run]] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """A row for each workload."""
        others: dict[str, dict[str, list[Run]]] = {}
        for tool, runs in list(zip(self.tools, self.runs, strict=True))[1:]:
            name = f"another {tool.name}" if tool.name == self.tools[0].name else tool.name
            others.setdefault(name, {})[tool.label] = runs
        return rows(self.job.workloads, self.runs[0], others)


def measure(job: Job, tools: Sequence[Tool], runs: int, report: Report) -> Measurement:
    """Run ``job`` under each of ``tools``, one after the other, ``runs`` times over.

    What the host does meanwhile then meets all alike. A first round warms
    caches up and does not count, unless there is to be one run only.
    """
    meter = NoiseMeter()
    found: list[list[Run]] = [[] for _ in tools]
    warm_up = 1 if runs > 1 else 0
    for number in range(runs + warm_up):
        which = f"run {number - warm_up + 1} of {runs}" if number >= warm_up else "warm-up"
        parts: list[list[Run]] = [[] for _ in tools]
        for part in job.parts():
            for tool, done in zip(tools, parts, strict=True):
                done.append(_run(part, tool, number + 1, which, report))
        if number >= warm_up:
            for runs_of_tool, done in zip(found, parts, strict=True):
                runs_of_tool.append(_together(done))
    return Measurement(job, tools, meter.read(), found)


def _run(part: Job, tool: Tool, seed: int, which: str, report: Report) -> Run:
    what = f"{which}, {tool.name} {tool.label}".strip()

    def progress(index: int) -> None:
        workload = part.workloads[index]
        report(f"{what}: {workload.family}, depth {workload.depth}")

    report(f"{what}: start")
    return tool.run(part, seed, progress)


def _together(parts: Sequence[Run]) -> Run:
    """One run of all parts; start and memory are those of the first."""
    return replace(parts[0], samples=tuple(sample for run in parts for sample in run.samples))


def guest_tsc_khz() -> int:
    """The frequency of a guest's clock here, as KVM knows it; HostError if there is no KVM."""
    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return vcpu.tsc_khz()
