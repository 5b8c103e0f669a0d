"""What a tool under measurement is, and the job that all get alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Protocol

from pykvm.bare import WaitMode
from pykvm.bare.layout import CPUS_MAX
from pykvm.bench.sample import Run
from pykvm.bench.workload import Workload
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError
from pykvm.host.threads import cpu_list, usable_cpus

Progress = Callable[[int], None]
"""Called with the number of the workload that begins."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The host's CPUs: ``disk`` is for what serves the disk, ``vcpus`` are for the vCPUs."""

    disk: int
    vcpus: frozenset[int]

    @classmethod
    def around(cls, disk: int) -> "Placement":
        """vCPUs have all but ``disk``; UsageError if this process may not use that, or no other."""
        usable = usable_cpus()
        if disk not in usable or len(usable) == 1:
            raise UsageError(
                f"--pin cannot be {disk}", f"choose one of several CPUs: {cpu_list(usable)}"
            )
        return cls(disk, frozenset(usable - {disk}))


@dataclass(frozen=True, slots=True)
class Job:
    """Run ``workloads`` on ``disks``, raw images or block devices of ``size`` bytes, one per VM.

    Each lasts ``seconds``, or ``requests`` requests of each queue if that is
    not 0. ``cpus`` vCPUs share out the queues, none having more vCPUs than
    queues. ``kernel`` is the bare guest, ``tsc_khz`` its clock, ``folder`` is
    for files of the run. ``exits``: a vCPU that waits reads a register meanwhile.
    ``placement``: where threads run, instead of wherever the host puts them.
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
        """Of each VM of the first workload, and of all if this is one of :meth:`parts`."""
        return self.workloads[0].queues

    @property
    def vms(self) -> int:
        """As ``queues``."""
        return self.workloads[0].vms

    @property
    def vcpus(self) -> int:
        """Of each VM, as ``queues``."""
        return min(self.cpus, self.queues)

    def parts(self) -> list["Job"]:
        """Jobs whose workloads the same VMs can carry out; together they are this one."""
        groups = groupby(self.workloads, lambda workload: (workload.queues, workload.vms))
        return [replace(self, workloads=list(group)) for _, group in groups]


class Tool(Protocol):
    """Something that carries out jobs, in one configuration.

    ``name`` is the tool's ("qemu"), ``label`` tells its configurations apart
    ("aio=threads"), empty if there is one only.
    """

    name: str
    label: str

    def version(self) -> str:
        """Of the tool, one line."""
        ...

    def note(self, job: Job) -> str:
        """What a reader of ``job``'s figures has to know of how the tool was run, a few words.

        HostError if this host cannot run it.
        """
        ...

    def command(self, job: Job) -> list[str]:
        """A command line that shows how the tool is run, for the first workload and disk."""
        ...

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """Carry out ``job``, a part of one, once; ``seed`` chooses random places.

        PykvmError if that fails.
        """
        ...
