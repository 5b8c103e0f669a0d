"""A different process's use of processor time and memory, read from /proc."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MIB = 1 << 20
_NANO = 1e-9
_HUGETLB = ("Shared_Hugetlb", "Private_Hugetlb")
"""Rss does not include these."""
_LARGE = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", *_HUGETLB)
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of processor time so far: of the ``whole`` process, and of its vCPU threads."""

    whole: float
    vcpus: float

    def __add__(self, other: Self) -> "CpuTime":
        """The sum for two processes."""
        return CpuTime(self.whole + other.whole, self.vcpus + other.vcpus)

    def __sub__(self, other: Self) -> "CpuTime":
        """The use between two moments."""
        return CpuTime(self.whole - other.whole, self.vcpus - other.vcpus)


@dataclass(frozen=True, slots=True)
class Ram:
    """The RAM of a VM as its host sees it.

    ``kind`` is "anonymous", "memfd" or "file". ``resident`` bytes have been touched, and ``large``
    of these are in large pages.
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
    """The memory of a process with a VM. ``beyond`` is its proportional set size without ``ram``,
    in bytes."""

    beyond: int
    ram: Ram


def cpu_seconds(pid: int) -> float:
    """The processor time of a process, exact to a nanosecond; OSError if the process is gone."""
    # The kernel's number for the CPU-time clock of a process (clock_getcpuclockid(3)).
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


class ProcessView:
    """A process seen from outside. The names of its vCPU threads begin with ``vcpu``.

    Create the view before the devices of the process have threads: a new thread has the name of
    the thread that started it, which may be a vCPU's.
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
        """The processor time, including ended threads; OSError if the process has ended."""
        vcpus = sum(int((task / "schedstat").read_text().split()[0]) for task in self._vcpus)
        return CpuTime(cpu_seconds(self.pid), vcpus * _NANO)

    def place(self, vcpus: Collection[int], others: Collection[int]) -> None:
        """Let vCPU threads run only on ``vcpus``, and all other threads on ``others``; OSError."""
        for task in (self._folder / "task").iterdir():
            os.sched_setaffinity(int(task.name), vcpus if task in self._vcpus else others)

    def memory(self, start: int, end: int) -> Memory:
        """The memory, with RAM at addresses ``start`` to ``end``; OSError if the process ended."""
        return parse_smaps((self._folder / "smaps").read_text(errors="replace"), start, end)


def parse_smaps(text: str, start: int, end: int) -> Memory:
    """The memory in /proc/PID/smaps of a process whose RAM is at ``start`` to ``end``."""
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
