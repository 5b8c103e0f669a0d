"""pykvm as a tool: ``pykvm boot`` with the bare guest."""

import sys
from pathlib import Path

from pykvm import __version__
from pykvm.bench.disk.sample import Run
from pykvm.bench.disk.tools.base import Job, Progress
from pykvm.bench.disk.tools.vm_runner import MEMORY_MIB, VmRunner
from pykvm.bench.disk.tools.watched_vm import Kind
from pykvm.host.threads import cpu_list
from pykvm.virtio import split


class PykvmTool:
    """See Tool. ``options`` are more keys for ``--disk``, such as ``merge=off``."""

    name = "pykvm"

    def __init__(self, options: str = "") -> None:
        self.label = options
        self._options = options
        self._runner = VmRunner(self._command, Kind("pykvm-vcpu", status=0))

    def version(self) -> str:
        """See Tool."""
        return f"pykvm {__version__}, Python {sys.version.split()[0]}"

    def note(self, job: Job) -> str:
        """See Tool."""
        return f"hot path {form()}"

    def command(self, job: Job) -> list[str]:
        """See Tool."""
        return self._command(job, job.disks[0], job.folder / "script")

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """See Tool."""
        return self._runner.run(job, seed, progress)

    def disk_keys(self, job: Job, disk: Path) -> str:
        """The value of ``--disk`` for ``disk``."""
        keys = str(disk).replace(",", ",,") + f",cache={job.cache.value}"
        if job.queues > 1:
            keys += f",num-queues={job.queues}"
        if self._options:
            keys += f",{self._options}"
        if job.placement:
            keys += f",cpu-affinity={job.placement.disk}"
        return keys

    def _command(self, job: Job, disk: Path, script: Path) -> list[str]:
        keys = self.disk_keys(job, disk)
        affinity = []
        if job.placement:
            affinity = ["--cpu-affinity", cpu_list(job.placement.vcpus)]
        return [
            *boot_command(job.kernel, "script"),
            *("--initrd", str(script), "--cpus", str(job.vcpus), "--disk", keys, *affinity),
        ]


def form() -> str:
    """The form of the hot path (speed/README.md): "compiled" or "interpreted"."""
    return "interpreted" if (split.__file__ or "").endswith(".py") else "compiled"


def boot_command(kernel: Path, words: str) -> list[str]:
    """A command line that boots the bare guest without a disk; ``words`` are for the guest."""
    return [
        *(sys.executable, "-m", "pykvm", "boot", "--memory", f"{MEMORY_MIB}M"),
        *("--kernel", str(kernel), "--append", words),
    ]
