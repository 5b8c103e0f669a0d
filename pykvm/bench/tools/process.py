"""What another process uses: processor time and memory, read from /proc."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MIB = 1 << 20
_NANO = 1e-9
_HUGETLB = ("Shared_Hugetlb", "Private_Hugetlb")
"""What is not in Rss."""
_LARGE = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", *_HUGETLB)
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


@dataclass(frozen=True, slots=True)
class Ram:
    """The RAM of a VM as its host sees it.

    ``kind`` is "anonymous", "memfd" or "file"; of its bytes ``resident`` have
    been touched, and of these ``large`` are in large pages.
    """

    kind: str
    resident: int
    large: int

    def __str__(self) -> str:
        return (
            f"{self.kind} RAM, {self.large / MIB:.1f} of {self.resident / MIB:.1f} MiB large pages"
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process with a VM: ``beyond`` is its proportional set size in bytes without ``ram``."""

    beyond: int
    ram: Ram


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

    def memory(self, start: int, end: int) -> Memory:
        """What it has; RAM is at addresses ``start`` to ``end``. OSError if it has ended."""
        return parse_smaps((self._folder / "smaps").read_text(errors="replace"), start, end)


def parse_smaps(text: str, start: int, end: int) -> Memory:
    """What /proc/PID/smaps says of a process whose RAM is at addresses ``start`` to ``end``."""
    beyond = resident = large = 0
    kind, is_ram = "anonymous", False
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            # The first line of a mapping: addresses, rights, offset, device, inode and a name.
            addresses, *_, file = [*line.split(None, 5), "", ""][:6]
            first, _, last = addresses.partition("-")
            is_ram = int(first, 16) < end and start < int(last, 16)
            if is_ram and file.startswith("/"):
                kind = "memfd" if file.startswith("/memfd:") else "file"
        elif name == "Pss" and not is_ram:
            beyond += _bytes(rest)
        elif is_ram and name in ("Rss", *_HUGETLB):
            resident += _bytes(rest)
        if is_ram and name in _LARGE:
            large += _bytes(rest)
    return Memory(beyond, Ram(kind, resident, large))


def _bytes(kilobytes: str) -> int:
    return int(kilobytes.split(maxsplit=1)[0]) << 10
