"""The results of fio in a guest as text. Pure."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from pykvm.bench.columns import align, number, whole
from pykvm.bench.fio.device import DeviceFigures, between, by_group
from pykvm.bench.fio.figures import FioOutput, JobFigures
from pykvm.bench.fio.in_guest import FioRun
from pykvm.devices.virtio_blk.observe.histogram import POWERS

_MIB = 1 << 20
_OF_DEVICE = {"read": "read", "write": "write", "sync": "flush", "trim": "discard"}
"""The device's word for an operation of fio."""
EMULATED = (
    "This host emulates the guest's kernel code, so the guest's CPU limits these figures, "
    "not the disk."
)

Key = tuple[int, str, str]
"""The place of a job among those of its name and operation, its name, and the operation."""


def keyed(output: FioOutput) -> dict[Key, JobFigures]:
    """The figures of each job and operation. Jobs may share a name."""
    seen: dict[tuple[str, str], int] = defaultdict(int)
    found = {}
    for job in output.jobs:
        found[(seen[job.key], *job.key)] = job
        seen[job.key] += 1
    return found


def text_of(
    runs: Sequence[FioRun],
    old: Sequence[FioOutput],
    emulated: bool,
    *,
    histogram: bool = False,
) -> str:
    """The tables of ``runs``, and their comparison with the ``old`` output of earlier runs.

    ``histogram``: also the times in the device of all runs together.
    """
    parts = [_jobs([run.output for run in runs]), _device(runs)]
    if histogram:
        parts.append(_histogram(runs))
    if old:
        parts.append(_compared([run.output for run in runs], old))
    if emulated:
        parts.append(EMULATED)
    return "\n\n".join(part for part in parts if part) + "\n"


def middle(values: Sequence[float | None]) -> float | None:
    """The median of the known values."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _jobs(outputs: Sequence[FioOutput]) -> str:
    several = len(outputs) > 1
    head = ["job", " op", "IOPS", *(["least", "most"] if several else []), "MiB/s"]
    head += ["latency p50 µs", "p99", "p99.9", "guest CPU %"]
    lines = []
    for key, found in gathered(outputs).items():
        speeds = [job.iops for job in found]
        spread = [_speed(min(speeds)), _speed(max(speeds))] if several else []
        lines.append(
            [
                *(key[1], f" {key[2]}", _speed(median(speeds)), *spread),
                number(median(job.rate for job in found) / _MIB if found[0].size else None),
                *(number(middle([get(job) for job in found])) for get in LATENCIES),
                number(median(job.cpu for job in found)),
            ]
        )
    return align(head, lines)


LATENCIES: tuple[Callable[[JobFigures], float | None], ...] = (
    lambda job: job.p50,
    lambda job: job.p99,
    lambda job: job.p999,
)


def gathered(outputs: Sequence[FioOutput]) -> dict[Key, list[JobFigures]]:
    """The figures of each job and operation in all ``outputs`` that have it."""
    found: dict[Key, list[JobFigures]] = {}
    for output in outputs:
        for key, job in keyed(output).items():
            found.setdefault(key, []).append(job)
    return found


def device_of(run: FioRun) -> Mapping[int, DeviceFigures]:
    """The device's figures of each group of jobs; of all groups together under the key -1."""
    return by_group(run.readings, run.output) or {-1: between(run.readings[0], run.readings[-1])}


def _device(runs: Sequence[FioRun]) -> str:
    head = ["in the device", " op", "requests", "service p50 µs", "p99", "mean", "of latency"]
    head += ["merged", "flushes", "notif/1000", "exits/1000"]
    each = [device_of(run) for run in runs]
    lines = []
    for group in each[0]:
        jobs = [job for job in runs[0].output.jobs if group in (-1, job.group)]
        names = ", ".join(dict.fromkeys(job.job for job in jobs))
        parts = [found[group] for found in each if group in found]
        for service in parts[0].services:
            same = [one for part in parts if (one := part.service(service.operation))]
            mean = median(one.mean for one in same)
            lines.append(
                [
                    *(names, f" {service.operation}"),
                    whole(median(one.requests for one in same)),
                    *(number(median(one.p50 for one in same)),),
                    number(median(one.p99 for one in same)),
                    number(mean),
                    _share(mean, jobs, service.operation),
                    whole(median(one.merged for one in same)),
                    whole(median(part.counters["flush_operations"] for part in parts)),
                    *(number(median(part.notifications for part in parts)),),
                    number(median(part.exits for part in parts)),
                ]
            )
    return align(head, lines) if lines else ""


def _histogram(runs: Sequence[FioRun]) -> str:
    """The number of requests of each operation whose time in the device was in each power of 2."""
    totals = [between(run.readings[0], run.readings[-1]) for run in runs]
    services = [one for total in totals for one in total.services]
    names = list(dict.fromkeys(one.operation for one in services))
    bins = [
        [sum(counts) for counts in zip(*(_bins(total, name) for total in totals), strict=True)]
        for name in names
    ]
    used = [place for place, counts in enumerate(zip(*bins, strict=True)) if any(counts)]
    lines = [
        [_below(place), *(whole(counts[place]) for counts in bins)]
        for place in range(used[0], used[-1] + 1)
    ]
    return align(["service time", *names], lines)


def _bins(figures: DeviceFigures, operation: str) -> tuple[int, ...]:
    found = figures.service(operation)
    return found.bins if found else (0,) * (len(POWERS) + 1)


def _below(place: int) -> str:
    """The upper bound of a histogram's bin, for people."""
    if place == len(POWERS):
        return "more"
    ns = POWERS[place]
    return f"< {number(ns / 1e3)} µs" if ns < 1e6 else f"< {number(ns / 1e6)} ms"


def _share(mean: float, jobs: Sequence[JobFigures], operation: str) -> str:
    """The part of the latency that fio saw which was spent in the device."""
    same = [job for job in jobs if _OF_DEVICE[job.operation] == operation]
    count = sum(job.requests for job in same)
    if not count:
        return "-"
    latency = sum(job.whole * job.requests for job in same) / count
    return f"{number(100 * mean / latency)} %" if latency else "-"


def _compared(outputs: Sequence[FioOutput], old: Sequence[FioOutput]) -> str:
    head = ["compared", " op", "IOPS", "before", "ratio", "of runs"]
    head += ["p50 µs", "before", "ratio", "p99 µs", "before", "ratio"]
    before = gathered(old)
    lines = []
    for key, now in gathered(outputs).items():
        then = before.get(key)
        if then is None:
            continue
        new, was = median(job.iops for job in now), median(job.iops for job in then)
        pairs = [a.iops / b.iops for a in now for b in then if b.iops]
        line = [key[1], f" {key[2]}", _speed(new), _speed(was), ratio(new, was)]
        line.append(f"{min(pairs):.2f}-{max(pairs):.2f}" if pairs else "-")
        for get in LATENCIES[:2]:
            a, b = middle([get(job) for job in now]), middle([get(job) for job in then])
            line += [number(a), number(b), ratio(a, b)]
        lines.append(line)
    return align(head, lines) if lines else "No job of the earlier output is among these jobs."


def ratio(new: float | None, old: float | None) -> str:
    """``new`` / ``old`` for a table."""
    return f"{new / old:.2f}" if new is not None and old else "-"


def _speed(value: float) -> str:
    return whole(value) if value >= 100 else number(value)
