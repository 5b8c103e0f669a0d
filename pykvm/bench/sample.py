"""The figures of one workload in one run. Pure."""

from dataclasses import dataclass
from typing import Self

from pykvm.bench.workload import Workload
from pykvm.testing.bare.results import LoadResult


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests per second, latencies in µs, and processor time in µs per request.

    The latter is CPU seconds per million requests as well: ``cpu`` without
    vCPU threads, which a guest that polls keeps busy all the time, and
    ``cpu_whole`` with them; None if not known. ``notifications`` and
    ``interrupts`` are per request.
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

    def rate(self, workload: Workload) -> float:
        """Millions of bytes per second."""
        return self.iops * workload.block / 1e6

    @classmethod
    def of_guest(cls, load: LoadResult, tsc_khz: int, cpu: float, cpu_whole: float) -> Self:
        """From what the guest counted, and the seconds of processor time meanwhile."""
        per_us = tsc_khz / 1e3
        requests = max(load.completed, 1)
        p50, p99, p999 = (load.latencies.percentile(p) / per_us for p in (50, 99, 99.9))
        return cls(
            iops=load.completed / (load.ticks / tsc_khz / 1e3),
            p50=p50,
            p99=p99,
            p999=p999,
            longest=load.latency_max / per_us,
            cpu=cpu * 1e6 / requests,
            cpu_whole=cpu_whole * 1e6 / requests,
            notifications=load.notifications / requests,
            interrupts=load.interrupts / requests,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one tool: a sample per workload, None where the tool has none for it.

    ``start`` is seconds from the start of the process to the guest's first
    words, ``memory`` the process's bytes beyond guest RAM after the last
    workload; None if not known.
    """

    samples: tuple[Sample | None, ...]
    start: float | None = None
    memory: int | None = None
