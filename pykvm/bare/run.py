"""Runs the bare guest on pykvm's own machine."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pykvm.bare.build import build_bare_guest
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bare.results import Results
from pykvm.bare.script import Script
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.machine.outcome import Outcome
from pykvm.trace import TraceOptions


@dataclass(frozen=True, slots=True)
class BareRun:
    """The outcome and the results of a run of the bare guest.

    ``console`` has the guest's output on COM1, ``exits`` the number of the vCPUs' exits to Python
    by cause, and ``disks`` each disk's statistics.
    """

    outcome: Outcome
    results: Results
    console: bytes
    exits: Counter[str]
    disks: list[dict[str, Any]]


def run_script(
    script: Script,
    disks: Sequence[DiskConfig] = (),
    *,
    memory: int = MEMORY_NEEDED,
    cpus: int = 1,
    timeout: float = 10.0,
    trace: TraceOptions | None = None,
) -> BareRun:
    """Boot the bare guest with ``script`` and run it to its end, or until ``timeout`` seconds."""
    config = _config("script", memory)
    config = replace(config, initrd=script.encode(), cpus=cpus, disks=list(disks), trace=trace)
    return _run(config, timeout)


def run_mode(words: str, *, memory: int = MEMORY_NEEDED, timeout: float = 10.0) -> BareRun:
    """Boot the bare guest in one of its simple modes, such as ``"hello 3"``.

    ``hello N``, ``exit N``, ``echo`` (COM1, until Ctrl-D), ``halt``, ``idle``,
    ``spin``, ``triple``, ``fault``, ``reset``, ``panic``.
    """
    return _run(_config(words, memory), timeout)


def _config(words: str, memory: int) -> MachineConfig:
    return MachineConfig(kernel=build_bare_guest(), append=words, memory=memory)


def _run(config: MachineConfig, timeout: float) -> BareRun:
    with Machine(config) as machine:
        outcome = machine.run(timeout=timeout)
        statistics = machine.statistics()
        return BareRun(
            outcome,
            Results(machine.ram.read),
            bytes(machine.console_output),
            Counter(statistics["exits"]),
            statistics["disks"],
        )
