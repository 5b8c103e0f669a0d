"""The figures of one workload in one run. Pure."""

from dataclasses import dataclass
from typing import Self

from pykvm.bare.latency import Latencies
from pykvm.bare.results import LoadResult
from pykvm.bench.disk.tools.process import Ram
from pykvm.bench.disk.workload import Workload


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests per second, latencies in µs, and processor time in µs per request.

    Processor time in µs per request equals CPU seconds per million requests. ``cpu`` excludes the
    vCPU threads, which a polling guest keeps busy all the time; ``cpu_whole`` includes them.
    ``notifications`` and ``interrupts`` are per request. ``exits`` are VM exits that the guest
    makes on purpose, per second, and ``exit_*`` their durations in µs. In a workload without
    requests, each such exit counts as a request. None: unknown.
    """

    iops: float
    p50: float
    p99: float
    p999: float
    longest: float
    cpu: float | None = None
    cpu_whole: float | None = None
    notifications: float | None = None
    interrupts: float | None = None
    exits: float | None = None
    exit_p50: float | None = None
    exit_p99: float | None = None
    exit_p999: float | None = None
    exit_longest: float | None = None

    def rate(self, workload: Workload) -> float | None:
        """Millions of bytes per second; None for a workload without requests."""
        return self.iops * workload.block / 1e6 if workload.depth else None

    @classmethod
    def of_guest(cls, load: LoadResult, tsc_khz: int, cpu: float, cpu_whole: float) -> Self:
        """From the guest's counts, and the processor time meanwhile in seconds."""
        per_us = tsc_khz / 1e3
        seconds = load.ticks / tsc_khz / 1e3
        timed = load.latencies if load.latencies.total else load.exits
        requests = max(timed.total, 1)
        exits = load.exits.total
        return cls(
            timed.total / seconds,
            *_spread(timed, per_us),
            cpu=cpu * 1e6 / requests,
            cpu_whole=cpu_whole * 1e6 / requests,
            notifications=load.notifications / requests,
            interrupts=load.interrupts / requests,
            **(_exits(load.exits, per_us, seconds) if exits else {}),
        )


def _spread(latencies: Latencies, per_us: float) -> tuple[float, float, float, float]:
    """The 50th, 99th and 99.9th percentile and the maximum, in µs."""
    p50, p99, p999 = (latencies.percentile(p) / per_us for p in (50, 99, 99.9))
    return p50, p99, p999, latencies.most / per_us


def _exits(latencies: Latencies, per_us: float, seconds: float) -> dict[str, float]:
    names = ("exit_p50", "exit_p99", "exit_p999", "exit_longest")
    found = dict(zip(names, _spread(latencies, per_us), strict=True))
    return found | {"exits": latencies.total / seconds}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one tool: a sample for each workload, None if the tool cannot carry it out.

    ``start`` is the time from the start of the process to the guest's first words, in seconds.
    ``memory`` is the process's memory without guest RAM after the last workload, in bytes. Both
    are None if unknown. With several VMs, ``start`` is the slowest, ``memory`` the average of one
    VM, and ``ram`` that of the first VM.
    """

    samples: tuple[Sample | None, ...]
    start: float | None = None
    memory: float | None = None
    ram: Ram | None = None
