"""How a guest begins: at a template, at a snapshot, or with a boot."""

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

from pykvm.agent.protocol import ENTROPY_BYTES
from pykvm.forms import refused
from pykvm.guest.waiting import Deadline
from pykvm.lean.records import record
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

_MOST_CLOCK = 1 << 33
"""Seconds since 1970: some time in the year 2242."""


@record
class Start:
    """The machine of a guest, and what its agent is told when it wakes up."""

    config: MachineConfig
    cold: bool = False
    entropy: bytes | None = None
    clock: float | None = None

    def __post_init__(self) -> None:
        if self.entropy is not None and not isinstance(self.entropy, bytes):
            raise refused("entropy", self.entropy, "give bytes, or None for new random ones")
        clock = self.clock
        if clock is not None and (
            not isinstance(clock, int | float)
            or isinstance(clock, bool)
            or not 0 <= clock < _MOST_CLOCK
        ):
            raise refused("clock", clock, "give seconds since 1970, or None for the host's clock")

    def machine(self, snapshot: "Any | Path | None", deadline: Deadline) -> Machine:
        """A new machine, which begins at ``snapshot`` if given. UsageError, HostError, …."""
        if snapshot is not None:
            return Machine(self.config, snapshot=snapshot)
        return Machine(self.config)

    def now_ns(self) -> int:
        """The time that the guest is told, in nanoseconds since 1970."""
        return time.time_ns() if self.clock is None else round(self.clock * 1_000_000_000)

    def random_bytes(self) -> bytes:
        """The entropy that the guest is given."""
        if self.entropy is None:
            return os.urandom(ENTROPY_BYTES)
        return hashlib.sha256(self.entropy).digest()
