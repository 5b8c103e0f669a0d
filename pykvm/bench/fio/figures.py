"""The figures in fio's JSON output. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_DIRECTIONS = ("read", "write", "trim")
_FIELD = re.compile(r"\[([^\]]*)\]")
_PERCENTILES = ("50.000000", "99.000000", "99.900000")


@dataclass(frozen=True, slots=True)
class JobFigures:
    """One operation of one job: ``read``, ``write``, ``trim`` or ``sync``.

    ``group`` is fio's: jobs of one group ran side by side, and groups one after the other. Times
    are in µs: ``p50`` to ``p999`` are percentiles of the completion latency (of the whole time for
    ``sync``), and ``whole`` is the mean time from the begin of the submission. None: fio did not
    tell. ``cpu`` is the job's part of a guest CPU in percent, user and system.
    """

    job: str
    operation: str
    group: int
    requests: int
    size: int
    iops: float
    rate: float
    whole: float
    p50: float | None
    p99: float | None
    p999: float | None
    cpu: float

    @property
    def key(self) -> tuple[str, str]:
        """The job and the operation."""
        return self.job, self.operation


@dataclass(frozen=True, slots=True)
class FioOutput:
    """fio's output: its JSON unchanged, the text before it, its figures, and the failed jobs.

    A failed job has its error number. ``jobs`` has no operation without requests.
    """

    json: str
    notes: str
    jobs: tuple[JobFigures, ...]
    errors: Mapping[str, int]

    @property
    def groups(self) -> list[int]:
        """The groups, in the order in which they ran."""
        return sorted({job.group for job in self.jobs})


def progress_of(line: str) -> str:
    """The progress that fio's line tells, such as ``50.0%, r=4KiB/s, r=1 IOPS, time left 00m:05s``.

    "" if it tells none. fio writes over its line: the text after the last carriage return counts.
    """
    fields = _FIELD.findall(line.rstrip("\r").rpartition("\r")[2])
    # The first one shows the states of the jobs.
    return ", ".join(field.replace("eta ", "time left ") for field in fields[1:])


def parse_output(text: str) -> FioOutput:
    """The figures in ``text``, fio's output with ``--output-format=json``.

    ValueError if that is not fio's JSON.
    """
    begin = 0 if text.startswith("{") else text.find("\n{") + 1
    notes, body = text[:begin], text[begin:]
    whole = json.loads(body)
    try:
        jobs = whole["jobs"]
        found = tuple(figures for job in jobs for figures in _figures_of(job))
        errors = {str(job["jobname"]): int(job["error"]) for job in jobs if job["error"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks {error}") from None
    return FioOutput(body, notes.strip(), found, errors)


def _figures_of(job: Mapping[str, Any]) -> Iterator[JobFigures]:
    name, group = str(job["jobname"]), int(job.get("groupid", 0))
    cpu = float(job.get("usr_cpu", 0)) + float(job.get("sys_cpu", 0))
    runtime = 0.0
    for direction in _DIRECTIONS:
        part = job.get(direction) or {}
        runtime = max(runtime, float(part.get("runtime", 0)) / 1000)
        if part.get("total_ios"):
            yield JobFigures(
                *(name, direction, group, int(part["total_ios"]), int(part["io_bytes"])),
                *(float(part["iops"]), float(part["bw_bytes"])),
                float(part["lat_ns"]["mean"]) / 1000,
                *_percentiles(part["clat_ns"]),
                cpu,
            )
    sync = job.get("sync") or {}
    if count := int(sync.get("total_ios", 0)):
        times = sync["lat_ns"]
        rate = count / runtime if runtime else 0.0
        mean = float(times["mean"]) / 1000
        yield JobFigures(name, "sync", group, count, 0, rate, 0.0, mean, *_percentiles(times), cpu)


def _percentiles(times: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    known = times.get("percentile") or {}
    p50, p99, p999 = (known[name] / 1000 if name in known else None for name in _PERCENTILES)
    return p50, p99, p999
