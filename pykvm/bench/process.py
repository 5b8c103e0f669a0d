"""What another process uses: processor time and memory, read from /proc."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_NANO = 1e-9
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of processor time so far: of the ``whole`` process, and of its vCPU threads."""

    whole: float
    vcpus: float

    def __add__(self, other: Self) -> "CpuTime":
        """Of two processes."""
        return CpuTime(self.whole + other.whole, self.vcpus + other.vcpus)

    def __sub__(self, other: Self) -> "CpuTime":
        """What was used in between."""
        return CpuTime(self.whole - other.whole, self.vcpus - other.vcpus)


def cpu_seconds(pid: int) -> float:
    """Of processor time that a process has used, to the nanosecond; OSError if it is gone."""
    # The kernel's number for the CPU-time clock of a process (clock_getcpuclockid(3)).
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


class ProcessView:
    """A process seen from outside; ``vcpu`` is how the names of its vCPU threads begin.

    It is to be made while its devices have no threads yet: a thread begins
    with the name of the one that started it, which may be a vCPU's.
    """

    def __init__(self, pid: int, vcpu: str) -> None:
        self.pid = pid
        self._folder = Path(f"/proc/{pid}")
        self._vcpus = [
            task
            for task in (self._folder / "task").iterdir()
            if (task / "comm").read_text().startswith(vcpu)
        ]

    def cpu_time(self) -> CpuTime:
        """To the nanosecond, threads that have ended included; OSError if the process has."""
        vcpus = sum(int((task / "schedstat").read_text().split()[0]) for task in self._vcpus)
        return CpuTime(cpu_seconds(self.pid), vcpus * _NANO)

    def place(self, vcpus: Collection[int], others: Collection[int]) -> None:
        """Let vCPU threads run on these CPUs only, and the others on those; OSError."""
        for task in (self._folder / "task").iterdir():
            os.sched_setaffinity(int(task.name), vcpus if task in self._vcpus else others)

    def memory(self, start: int, end: int) -> int:
        """Proportional set size in bytes without the mappings that overlap ``start`` to ``end``."""
        total = 0
        counts = False
        for line in (self._folder / "smaps").read_text(errors="replace").splitlines():
            name, _, rest = line.partition(":")
            if "-" in name.split(" ")[0]:
                # The first line of a mapping: addresses, rights, …, and a name.
                first, _, last = line.split(" ", 1)[0].partition("-")
                counts = int(last, 16) <= start or end <= int(first, 16)
            elif name == "Pss" and counts:
                total += int(rest.split()[0]) << 10
        return total
