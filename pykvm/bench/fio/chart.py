"""The results of fio in a guest as an SVG drawing. Pure."""

from collections.abc import Sequence
from statistics import median

from pykvm.bench.fio.in_guest import FioRun
from pykvm.bench.fio.report import device_of, gathered
from pykvm.errors import shown
from pykvm.svg.bars import Bar, Panel, bars_of


def chart_of(runs: Sequence[FioRun], note: str) -> str:
    """Requests per second, and latencies in the guest and in the device. ``note``: the host."""
    jobs = gathered([run.output for run in runs])
    speeds = []
    latencies = []
    for (_, name, operation), found in jobs.items():
        label = shown(f"{name} {operation}", most=32)
        each = [job.iops for job in found]
        speeds.append(Bar(label, median(each), min(each), max(each)))
        if known := [job.p50 for job in found if job.p50 is not None]:
            latencies.append(Bar(label, median(known), min(known), max(known)))
    each_group = [device_of(run) for run in runs]
    for group in each_group[0]:
        names = dict.fromkeys(j.job for j in runs[0].output.jobs if group in (-1, j.group))
        for service in each_group[0][group].services:
            label = shown(f"device: {', '.join(names)} {service.operation}", most=32)
            times = [
                one.p50
                for found in each_group
                if group in found and (one := found[group].service(service.operation))
            ]
            latencies.append(Bar(label, median(times), min(times), max(times), 1))
    panels = [
        Panel("requests per second", speeds),
        Panel("median latency, µs (guest and device)", latencies, log=True),
    ]
    return bars_of(f"fio in a guest of pykvm{note}", panels)
