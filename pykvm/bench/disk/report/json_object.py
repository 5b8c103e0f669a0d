"""A measurement as one JSON object; docs/reference/bench.md describes it."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pykvm import __version__
from pykvm.bench.disk.report.compare import Figures, Row, middle
from pykvm.bench.disk.sample import Run
from pykvm.bench.disk.session import Measurement, Session
from pykvm.bench.disk.tools.base import Tool
from pykvm.bench.disk.tools.pykvm_tool import form
from pykvm.names import names_fields

SHAPE = ("block", "depth", "segments", "queues", "vms")


def as_object(session: Session) -> dict[str, Any]:
    """The object: host, settings, medians and every single run."""
    first = session.parts[0]
    job = first.job
    return {
        "version": __version__,
        "form": form(),
        "host": _host() | {"noise": asdict(session.noise)},
        "settings": {
            **names_fields("disks", job.disks),
            "size": job.size,
            "cache": [part.job.cache.value for part in session.parts],
            "seconds": job.seconds,
            "requests": job.requests,
            "cpus": job.cpus,
            "wait": job.wait.name.lower(),
            "exits": job.exits,
            "pin": job.placement.disk if job.placement else None,
            "runs": len(first.runs[0]),
            "busy": session.busy,
        },
        "rows": [_row(row) for row in session.rows()],
        "tools": [
            _tool(part, tool, runs)
            for part in session.parts
            for tool, runs in zip(part.tools, part.runs, strict=True)
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "workload": row.workload.kind,
        "cache": row.cache,
        **{name: getattr(row.workload, name) for name in SHAPE},
        "pykvm": _figures(row.ours),
        "others": {
            versus.tool: _figures(versus.figures) | {"ratio": asdict(versus.ratio)}
            for versus in row.others
        },
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return asdict(figures.median) | {
        "configuration": figures.label,
        "iops_least": figures.least,
        "iops_most": figures.most,
    }


def _tool(measurement: Measurement, tool: Tool, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "name": tool.name,
        "configuration": tool.label,
        "cache": measurement.job.cache.value,
        "version": tool.version(),
        "note": tool.note(measurement.job),
        "command": tool.command(measurement.job),
        "start": middle(run.start for run in runs),
        "memory": middle(run.memory for run in runs),
        "runs": [asdict(run) for run in runs],
    }


def _host() -> dict[str, Any]:
    model = ""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }
