"""What a tool under measurement is, and the job that all get alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pykvm.bench.sample import Run
from pykvm.bench.workload import Workload
from pykvm.devices.virtio_blk import CacheMode
from pykvm.testing.bare import WaitMode

Progress = Callable[[int], None]
"""Called with the number of the workload that begins."""


@dataclass(frozen=True, slots=True)
class Job:
    """Run ``workloads`` on ``disk`` (a raw image or block device of ``size`` bytes).

    Each lasts ``seconds``, or ``requests`` requests if that is not 0.
    Each of ``queues`` has a vCPU and requests of its own.
    ``kernel`` is the bare guest, ``tsc_khz`` its clock, ``folder`` is for
    files of the run.
    """

    workloads: Sequence[Workload]
    disk: Path
    size: int
    cache: CacheMode
    seconds: float
    requests: int
    kernel: Path
    tsc_khz: int
    folder: Path
    wait: WaitMode = WaitMode.POLL
    queues: int = 1


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

    def command(self, job: Job) -> list[str]:
        """A command line that shows how the tool is run."""
        ...

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """Carry out ``job`` once; ``seed`` chooses random places. PykvmError if that fails."""
        ...
