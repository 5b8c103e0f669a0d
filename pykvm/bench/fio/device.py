"""The device's own view of fio's jobs: its counters before and after each of them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.bench.fio.figures import FioOutput
from pykvm.devices.virtio_blk.observe.histogram import Histogram
from pykvm.devices.virtio_blk.observe.stats import COUNTERS, Stats

_OPERATIONS = (("read", "rd"), ("write", "wr"), ("flush", "flush"), ("discard", "unmap"))
_CLOSE = 0.01
"""The part of the bytes by which the device and fio may differ."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of all disks, their notifications, and the exits of vCPUs, at one moment."""

    stats: Stats
    notifications: int
    exits: int


@dataclass(frozen=True, slots=True)
class Service:
    """The requests of one operation. Times are in µs, from the ring to the completion."""

    operation: str
    requests: int
    mean: float
    p50: float
    p99: float
    merged: int
    bins: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """The device between two readings. ``notifications`` and ``exits`` are per 1000 requests."""

    services: tuple[Service, ...]
    counters: dict[str, int]
    notifications: float
    exits: float

    def service(self, operation: str) -> Service | None:
        """The requests of ``operation``, None if there were none."""
        return next((one for one in self.services if one.operation == operation), None)


def between(before: Reading, after: Reading) -> DeviceFigures:
    """The figures of the time between two readings."""
    old, new = before.stats.counters(), after.stats.counters()
    counters = {name: new[name] - old[name] for name in COUNTERS}
    services = []
    for operation, short in _OPERATIONS:
        count = counters[f"{short}_operations"]
        if not count:
            continue
        times = _less(after.stats.histogram(operation), before.stats.histogram(operation))
        services.append(
            Service(
                operation,
                count,
                counters[f"{short}_total_time_ns"] / count / 1000,
                times.percentile(50) / 1000,
                times.percentile(99) / 1000,
                counters.get(f"{short}_merged", 0),
                tuple(times.as_dict()["bins"]),
            )
        )
    requests = sum(one.requests for one in services) or 1
    return DeviceFigures(
        tuple(services),
        counters,
        1000 * (after.notifications - before.notifications) / requests,
        1000 * (after.exits - before.exits) / requests,
    )


def by_group(readings: Sequence[Reading], output: FioOutput) -> dict[int, DeviceFigures]:
    """The figures of each of fio's groups, which ran one after the other.

    A group ends at the first reading at which the device has moved the group's bytes. Empty if
    device and fio do not agree on the bytes, such as with a cache of the guest between them.
    """
    first, last = readings[0].stats, readings[-1].stats
    moved = {
        group: [
            sum(job.size for job in output.jobs if (job.group, job.operation) == (group, kind))
            for kind in ("read", "write")
        ]
        for group in output.groups
    }
    wanted = [sum(sizes[i] for sizes in moved.values()) for i in (0, 1)]
    seen = [last.rd_bytes - first.rd_bytes, last.wr_bytes - first.wr_bytes]
    if any(abs(a - b) > _CLOSE * max(a, b) for a, b in zip(wanted, seen, strict=True)):
        return {}
    found = {}
    at, rd, wr = 0, first.rd_bytes, first.wr_bytes
    for number, group in enumerate(output.groups):
        rd, wr = rd + moved[group][0], wr + moved[group][1]
        begin = at
        if number == len(output.groups) - 1:
            at = len(readings) - 1
        while at < len(readings) - 1 and not _reached(readings[at].stats, rd, wr):
            at += 1
        found[group] = between(readings[begin], readings[at])
    return found


def _reached(stats: Stats, rd: int, wr: int) -> bool:
    return stats.rd_bytes >= rd and stats.wr_bytes >= wr


def _less(after: Histogram, before: Histogram) -> Histogram:
    found = Histogram()
    for bucket, count in enumerate(after.counts):
        found.counts[bucket] = count - before.counts[bucket]
    return found
