"""The other work of the host during a measurement."""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_BUSY = (0, 1, 2, 5, 6)
_STEAL = 7


@dataclass(frozen=True, slots=True)
class Noise:
    """Processor time in CPUs, on average.

    ``others`` is the use by all but this process and its children, interrupts included. ``stolen``
    is the time that the host's own hypervisor withheld. ``busy`` is the use by bench's busy loops.
    """

    others: float
    stolen: float
    busy: float = 0.0

    def __str__(self) -> str:
        stolen = ""
        if self.stolen >= 0.01:
            stolen = f", and the host's hypervisor withheld {self.stolen:.2f}"
        return f"meanwhile other programs used {self.others:.2f} of {os.cpu_count()} CPUs{stolen}"


class NoiseMeter:
    """Measures from its creation on.

    ``busy()`` returns the seconds of processor time that bench's busy loops have used.
    """

    def __init__(self, busy: Callable[[], float]) -> None:
        self._busy = busy
        self._began = Usage.now(busy())

    def read(self) -> Noise:
        """The noise until now. All children but the busy loops must have ended."""
        return noise_between(self._began, Usage.now(self._busy()))


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds so far: the ``clock``, and processor time.

    ``busy`` is used by all processes, ``own`` by this process and its ended children, ``stolen``
    withheld by the host's hypervisor, ``loops`` used by bench's running busy loops.
    """

    clock: float
    busy: float
    own: float
    stolen: float
    loops: float = 0.0

    @classmethod
    def now(cls, loops: float = 0.0) -> Self:
        ticks = parse_stat(Path("/proc/stat").read_text())
        per_second = os.sysconf("SC_CLK_TCK")
        used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(
            clock=time.monotonic(),
            busy=sum(ticks[i] for i in _BUSY) / per_second,
            own=sum(usage.ru_utime + usage.ru_stime for usage in used),
            stolen=ticks[_STEAL] / per_second,
            loops=loops,
        )


def noise_between(before: Usage, now: Usage) -> Noise:
    """The noise between two moments."""
    elapsed = max(now.clock - before.clock, 1e-3)
    loops = now.loops - before.loops
    others = (now.busy - before.busy) - (now.own - before.own) - loops
    # The kernel counts the two in different steps, so the difference may be negative.
    stolen = now.stolen - before.stolen
    return Noise(max(others / elapsed, 0.0), stolen / elapsed, loops / elapsed)


def parse_stat(text: str) -> list[int]:
    """The first line of /proc/stat: ticks of user, nice, system, … time of all CPUs (proc(5))."""
    first = text.partition("\n")[0].split()
    return [int(word) for word in first[1 : 1 + len(_FIELDS)]]
