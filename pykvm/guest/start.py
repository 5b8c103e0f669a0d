"""How a guest begins: at a template, at a snapshot, or with a boot."""

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pykvm.agent.protocol import ENTROPY_BYTES
from pykvm.devices.virtio_blk.layers.faults import FaultPlan
from pykvm.forms import refused
from pykvm.guest.waiting import Deadline
from pykvm.lean.records import record, replace
from pykvm.machine.bundle import BUNDLED
from pykvm.machine.config import ConsoleMode, MachineConfig, disk_config
from pykvm.machine.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.machine.disks import Disk

_MOST_CLOCK = 1 << 33
"""Seconds since 1970: some time in the year 2242."""


def configuration(guest: str | None, kernel: object, options: dict[str, Any]) -> MachineConfig:
    """The machine of a guest; ``options`` are further ones. Without both, it is pykvm's own guest.

    Every disk gets a plan of failures, so that rules can be added while it runs. UsageError.
    """
    if guest is None and kernel is None:
        guest = BUNDLED
    if guest is not None:
        options |= {"agent": True, "console": ConsoleMode.NONE}
    config = MachineConfig(guest=guest, kernel=kernel, **options)  # type: ignore[arg-type]
    return _with_plans(config, lambda plan: plan or FaultPlan()) if config.disks else config


def disk_of(disk: "DiskConfig | Path | str") -> "DiskConfig":
    """A disk as :func:`configuration` makes it of ``disk``. UsageError."""
    made = disk_config("disk", disk)
    return made if made.faults else replace(made, faults=FaultPlan())


def _with_plans(
    config: MachineConfig, plan: "Callable[[FaultPlan | None], FaultPlan | None]"
) -> MachineConfig:
    """``config``, each of whose disks has what ``plan`` makes of its plan of failures."""
    return replace(config, disks=tuple(replace(d, faults=plan(d.faults)) for d in config.disks))


@record
class Start:
    """The machine of a guest, and what its agent is told when it wakes up."""

    config: MachineConfig
    cold: bool = False
    entropy: str = "new"
    clock: float | None = None

    def __post_init__(self) -> None:
        if self.entropy not in ("new", "same"):
            raise refused("entropy", self.entropy, "use 'new' or 'same'")
        clock = self.clock
        if clock is not None and (
            not isinstance(clock, int | float)
            or isinstance(clock, bool)
            or not 0 <= clock < _MOST_CLOCK
        ):
            raise refused("clock", clock, "give seconds since 1970, or None for the host's clock")

    def with_disks(self, disks: "Sequence[Disk]") -> "Start":
        """The same with these disks, which were perhaps added or removed."""
        config = replace(self.config, disks=tuple(disk.config for disk in disks))
        return replace(self, config=config)

    def fork(self) -> "Start":
        """The same for a further guest: its disks have copies of the plans of failures."""
        if not self.config.disks:
            return self
        config = _with_plans(self.config, lambda plan: plan and plan.copy())
        return replace(self, config=config)

    def machine(self, snapshot: "Any | Path | None", deadline: Deadline) -> Machine:
        """A new machine, which begins at ``snapshot`` if given. UsageError, HostError, …."""
        if snapshot is not None:
            return Machine(self.config, snapshot=snapshot)
        if self.cold:
            return Machine(self.config)
        from pykvm.templates.start import machine

        return machine(self.config, timeout=deadline.left)

    def awakening(self) -> tuple[int, bytes | None]:
        """The time in nanoseconds since 1970, and the entropy, that a guest gets now."""
        now = time.time_ns() if self.clock is None else round(self.clock * 1_000_000_000)
        return now, os.urandom(ENTROPY_BYTES) if self.entropy == "new" else None
