"""Machines with the bare guest, and a thread that stops and resumes them all the time."""

import random
import threading
import time
from collections import Counter
from typing import Any

from patience import patience

from pykvm.bare import Script, build_bare_guest
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.machine import DiskConfig, Machine, MachineConfig, RunState
from pykvm.machine.events import Event, Stop

COUNTED = (
    *("rd_operations", "wr_operations", "flush_operations", "rd_bytes", "wr_bytes"),
    *("rd_merged", "wr_merged"),
    *("failed_rd_operations", "failed_wr_operations", "failed_flush_operations"),
    *("invalid_rd_operations", "invalid_wr_operations", "invalid_other_operations"),
)
"""Statistics that must depend only on the guest's requests."""


class Owner:
    """Resumes a machine whenever it stops for an error; within the context, also pauses it.

    ``stops`` is the number of stops after which it was the first to resume, ``events``
    counts the machine's events by name. The context ends when the run is over or failed.
    """

    def __init__(self, machine: Machine, seed: int) -> None:
        self.stops = self.pauses = 0
        self.events: Counter[str] = Counter()
        self._machine = machine
        self._dice = random.Random(seed)
        self._over = threading.Event()
        self._changed = 0
        # A pause counts even if the machine had stopped for an error: no other thread resumes then.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run)
        machine.listen(self._heard)

    def _heard(self, event: Event) -> None:
        self.events[type(event).__name__] += 1
        with self._lock:
            if isinstance(event, Stop) and self._machine.status is RunState.IO_ERROR:
                self.stops += 1
                self._machine.resume()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._machine.pause()
                before = self._look()
                time.sleep(self._dice.choice((0.0, 0.002)))
                changed = self._look() != before
                # At the end of a run there is nothing to pause.
                self._changed += changed and self._machine.outcome is None
                self._machine.resume()
                self.pauses += 1
            if self._over.wait(self._dice.choice((0.0, 0.02, 0.05))):
                return

    def _look(self) -> object:
        disks = range(len(self._machine.disks))
        return self._machine.statistics()["exits"], [counted(self._machine, i) for i in disks]

    def __enter__(self) -> "Owner":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(patience())
        assert not self._thread.is_alive()
        assert not self._changed, "a stopped machine did something"


def machine_of(script: Script, *disks: DiskConfig, cpus: int = 1) -> Machine:
    return Machine(
        MachineConfig(
            kernel=build_bare_guest(),
            append="script",
            initrd=script.encode(),
            memory=MEMORY_NEEDED,
            cpus=cpus,
            disks=list(disks),
        )
    )


def counted(machine: Machine, disk: int = 0) -> dict[str, Any]:
    statistics = machine.statistics()["disks"][disk]
    return {name: statistics[name] for name in COUNTED}
