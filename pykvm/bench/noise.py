"""What else the host did while something was measured."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_BUSY = (0, 1, 2, 5, 6)
_STEAL = 7


@dataclass(frozen=True, slots=True)
class Noise:
    """In CPUs, on average: what ``others`` used than this process and its children, interrupts
    included, and what the host's own hypervisor withheld (``stolen``)."""

    others: float
    stolen: float

    def __str__(self) -> str:
        stolen = f", and {self.stolen:.2f} were stolen" if self.stolen >= 0.01 else ""
        return f"meanwhile others used {self.others:.2f} of {os.cpu_count()} CPUs{stolen}"


class NoiseMeter:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._began = Usage.now()

    def read(self) -> Noise:
        """Until now, when all children have ended."""
        return noise_between(self._began, Usage.now())


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds so far: of the ``clock``, of processor time by all, by us, and stolen."""

    clock: float
    busy: float
    own: float
    stolen: float

    @classmethod
    def now(cls) -> Self:
        ticks = parse_stat(Path("/proc/stat").read_text())
        per_second = os.sysconf("SC_CLK_TCK")
        used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(
            clock=time.monotonic(),
            busy=sum(ticks[i] for i in _BUSY) / per_second,
            own=sum(usage.ru_utime + usage.ru_stime for usage in used),
            stolen=ticks[_STEAL] / per_second,
        )


def noise_between(before: Usage, now: Usage) -> Noise:
    """What was not ours."""
    elapsed = max(now.clock - before.clock, 1e-3)
    others = (now.busy - before.busy) - (now.own - before.own)
    # The two are counted in different steps.
    return Noise(max(others / elapsed, 0.0), (now.stolen - before.stolen) / elapsed)


def parse_stat(text: str) -> list[int]:
    """The first line of /proc/stat: ticks of user, nice, system, … time of all CPUs (proc(5))."""
    first = text.partition("\n")[0].split()
    return [int(word) for word in first[1 : 1 + len(_FIELDS)]]
