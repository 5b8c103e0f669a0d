"""fio as a tool: the same requests from the host itself, without a VM."""

import json
import shutil
import subprocess
import tempfile
from shlex import join
from typing import Any

from pykvm.bench.disk.sample import Run, Sample
from pykvm.bench.disk.tools.base import Job, Progress
from pykvm.bench.disk.tools.child import last_words, running
from pykvm.bench.disk.workload import Workload
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import PykvmError, UsageError

_PATTERNS = {
    "randread": "randread",
    "randwrite": "randwrite",
    "seqread": "read",
    "seqwrite": "write",
}
_PERCENTILES = {"p50": "50.000000", "p99": "99.000000", "p999": "99.900000"}
_LARGE_PAGES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=100000000:glibc.malloc.top_pad=33554432"
)
"""Makes glibc's malloc(3) ask for large pages, also for buffers smaller than one.

VMs have their RAM in large pages. With small pages, the host's disk would get large requests in
many more segments, and the comparison would not be fair.
"""
SLACK_SECONDS = 60.0
"""A workload may take this much longer than its time."""


class FioTool:
    """See Tool, with one of fio's I/O engines."""

    name = "fio"

    def __init__(self, engine: str) -> None:
        """UsageError if fio is not installed."""
        found = shutil.which("fio")
        if found is None:
            raise UsageError("fio is not on the PATH", "install it (Debian: fio)")
        self.label = f"ioengine={engine}"
        self._program = found
        self._engine = engine

    def version(self) -> str:
        """See Tool."""
        done = subprocess.run([self._program, "--version"], capture_output=True, check=False)
        return done.stdout.decode(errors="replace").strip()

    def note(self, job: Job) -> str:
        """See Tool."""
        return "malloc asked for large pages (glibc 2.35 and later)"

    def command(self, job: Job) -> list[str]:
        """See Tool. The command of the first workload that fio can carry out; empty without one."""
        usable = [workload for workload in job.workloads if self._can(workload)]
        return self._command(job, usable[0], 1) if usable else []

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """See Tool."""
        samples: list[Sample | None] = []
        for number, workload in enumerate(job.workloads):
            progress(number)
            samples.append(self._measure(job, workload, seed) if self._can(workload) else None)
        return Run(tuple(samples))

    def _can(self, workload: Workload) -> bool:
        # Synchronous calls always have a depth of 1.
        return workload.alone and (self._engine != "psync" or workload.depth == 1)

    def _measure(self, job: Job, workload: Workload, seed: int) -> Sample:
        command = self._command(job, workload, seed)
        with tempfile.TemporaryFile() as errors, running(command, errors) as child:
            try:
                output, _ = child.communicate(timeout=job.seconds + SLACK_SECONDS)
            except subprocess.TimeoutExpired:
                raise PykvmError("fio does not end", f"try '{join(command)}'") from None
            if child.returncode:
                raise PykvmError(f"fio failed{last_words(errors)}", f"try '{join(command)}'")
        # Warnings may come before the object.
        text = output[max(output.find(b"{"), 0) :]
        try:
            return sample_of(json.loads(text)["jobs"][0], workload)
        except (ValueError, LookupError, TypeError, ArithmeticError):
            message = "fio's report does not have the form of fio 3's"
            raise PykvmError(message, f"see what '{join(command)}' prints") from None

    def _command(self, job: Job, workload: Workload, seed: int) -> list[str]:
        limit = ["--time_based", f"--runtime={int(job.seconds * 1e6)}us"]
        if job.requests:
            # Without io_size fio stops at the end of the file.
            size = job.requests * workload.block
            limit = [f"--number_ios={job.requests}", f"--io_size={size}"]
        sync = [] if job.cache.writeback else ["--sync=dsync"]
        # An unescaped colon would end the name.
        file = str(job.disks[0]).replace(":", "\\:")
        return [
            *("/usr/bin/env", f"GLIBC_TUNABLES={_LARGE_PAGES}"),
            *(self._program, "--name=bench", f"--filename={file}"),
            *(f"--ioengine={self._engine}", f"--direct={int(job.cache.direct)}"),
            *(f"--rw={_PATTERNS[workload.kind]}", f"--bs={workload.block}"),
            *(f"--iodepth={workload.depth}", f"--size={job.size}", *limit, "--thread"),
            *([f"--cpus_allowed={job.placement.disk}"] if job.placement else []),
            *("--norandommap", f"--randseed={seed}", "--invalidate=0", "--fallocate=none", *sync),
            # Latency begins at the submission, as in the guest.
            *("--lat_percentiles=1", "--clat_percentiles=0"),
            *("--percentile_list=50:99:99.9", "--output-format=json"),
        ]


def sample_of(report: dict[str, Any], workload: Workload) -> Sample:
    """A sample from the JSON report of fio's only job."""
    side = report["write" if workload.write else "read"]
    times = side["lat_ns"]
    ranks = times["percentile"]
    seconds = side["runtime"] / 1e3
    cpu = (report["usr_cpu"] + report["sys_cpu"]) / 100 * seconds * 1e6 / max(side["total_ios"], 1)
    return Sample(
        iops=side["iops"],
        longest=times["max"] / 1e3,
        cpu=cpu,
        cpu_whole=cpu,
        **{name: ranks[key] / 1e3 for name, key in _PERCENTILES.items()},
    )


def fio_tools(cache: CacheMode) -> list[FioTool]:
    """fio in each engine that suits ``cache``."""
    engines = ["psync", "io_uring"]
    if cache.direct:
        engines.append("libaio")
    return [FioTool(engine) for engine in engines]
