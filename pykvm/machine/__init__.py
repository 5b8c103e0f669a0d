"""The composition root: one VM, made of all the parts, and how its run ends::

    with Machine(MachineConfig(kernel=Path("kernel.elf"))) as machine:
        outcome = machine.run(timeout=60)
        print(outcome.kind, outcome.status, machine.console_output.decode())

Nothing is global: any number of machines may live in one process.
"""

from pykvm.machine.config import ConsoleMode, DiskConfig, MachineConfig
from pykvm.machine.disks import Disk, IoStatus
from pykvm.machine.machine import Machine
from pykvm.machine.run_state import RunState

__all__ = [
    "ConsoleMode",
    "Disk",
    "DiskConfig",
    "IoStatus",
    "Machine",
    "MachineConfig",
    "RunState",
]
