"""The contract of a tool under measurement, and the job, which is the same for all tools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Protocol

from pykvm.bare import WaitMode
from pykvm.bare.layout import CPUS_MAX
from pykvm.bench.disk.sample import Run
from pykvm.bench.disk.workload import Workload
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError
from pykvm.host.threads import cpu_list, usable_cpus

Progress = Callable[[int], None]
"""Called with the index of the workload that begins."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Host CPUs: ``disk`` is for the threads that serve the disk, ``vcpus`` are for the vCPUs."""

    disk: int
    vcpus: frozenset[int]

    @classmethod
    def around(cls, disk: int) -> "Placement":
        """vCPUs get all usable CPUs but ``disk``; UsageError if it is not usable, or alone."""
        usable = usable_cpus()
        if disk not in usable or len(usable) == 1:
            raise UsageError(
                f"--pin cannot be {disk}", f"choose one of several CPUs: {cpu_list(usable)}"
            )
        return cls(disk, frozenset(usable - {disk}))


@dataclass(frozen=True, slots=True)
class Job:
    """Run ``workloads`` on ``disks``, raw images or block devices of ``size`` bytes, one per VM.

    Each workload lasts ``seconds``, or ``requests`` requests of each queue if that is not 0.
    ``cpus`` is the most vCPUs; they share out the queues, and no VM has more vCPUs than queues.
    ``kernel`` is the bare guest, ``tsc_khz`` the frequency of its clock, and ``folder`` is for
    files of the run. ``exits``: a waiting vCPU reads a register of the device. ``placement`` has
    the threads' CPUs; with None the host chooses them.
    """

    workloads: Sequence[Workload]
    disks: Sequence[Path]
    size: int
    cache: CacheMode
    seconds: float
    requests: int
    kernel: Path
    tsc_khz: int
    folder: Path
    wait: WaitMode = WaitMode.POLL
    cpus: int = CPUS_MAX
    exits: bool = False
    placement: Placement | None = None

    @property
    def queues(self) -> int:
        """The queues of each VM in the first workload. In one of :meth:`parts`, all are alike."""
        return self.workloads[0].queues

    @property
    def vms(self) -> int:
        """The number of VMs, in the same workloads as ``queues``."""
        return self.workloads[0].vms

    @property
    def vcpus(self) -> int:
        """The vCPUs of each VM, in the same workloads as ``queues``."""
        return min(self.cpus, self.queues)

    def parts(self) -> list["Job"]:
        """This job cut into jobs, so that the same VMs can carry out all workloads of one job."""
        groups = groupby(self.workloads, lambda workload: (workload.queues, workload.vms))
        return [replace(self, workloads=list(group)) for _, group in groups]


class Tool(Protocol):
    """A tool in one configuration, which carries out jobs.

    ``name`` is the tool's name ("qemu"). ``label`` tells its configurations apart ("aio=threads");
    it is empty if there is only one.
    """

    name: str
    label: str

    def version(self) -> str:
        """The tool's version, one line."""
        ...

    def note(self, job: Job) -> str:
        """A few words on how the tool was run, for readers of ``job``'s figures.

        HostError if this host cannot run the tool.
        """
        ...

    def command(self, job: Job) -> list[str]:
        """The tool's command line for the first workload and disk."""
        ...

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """Carry out ``job``, one of :meth:`Job.parts`, once; ``seed`` chooses random places.

        PykvmError if that fails.
        """
        ...
