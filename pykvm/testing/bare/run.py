"""Runs the bare guest on pykvm's own machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.platform.outcome import Outcome
from pykvm.testing.bare.build import build_bare_guest
from pykvm.testing.bare.layout import MEMORY_NEEDED
from pykvm.testing.bare.results import Results
from pykvm.testing.bare.script import Script


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """How a script's run ended, what it left in RAM, and what it printed on COM1."""

    outcome: Outcome
    results: Results
    console: bytes


def run_script(
    script: Script,
    disks: Sequence[DiskConfig] = (),
    *,
    memory: int = MEMORY_NEEDED,
    cpus: int = 1,
    timeout: float = 10.0,
) -> ScriptRun:
    """Boot the bare guest with ``script`` and run it to its end, or until ``timeout`` seconds."""
    config = MachineConfig(
        kernel=build_bare_guest(),
        initrd=script.encode(),
        append="script",
        memory=memory,
        cpus=cpus,
        disks=list(disks),
    )
    with Machine(config) as machine:
        outcome = machine.run(timeout=timeout)
        results = Results(machine.ram.read)
        return ScriptRun(outcome, results, bytes(machine.console_output))


def run_mode(words: str, *, memory: int = MEMORY_NEEDED, timeout: float = 10.0) -> ScriptRun:
    """Boot the bare guest in one of its simple modes, such as ``"hello 3"``."""
    config = MachineConfig(kernel=build_bare_guest(), append=words, memory=memory)
    with Machine(config) as machine:
        outcome = machine.run(timeout=timeout)
        return ScriptRun(outcome, Results(machine.ram.read), bytes(machine.console_output))
