"""The composition root: one VM, made of all the parts, and how its run ends::

    with Machine(MachineConfig(kernel=Path("kernel.elf"))) as machine:
        outcome = machine.run(timeout=60)
        print(outcome.kind, outcome.status, machine.console_output.decode())

Nothing is global: any number of machines may live in one process.
"""

from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.run_state import RunState

if TYPE_CHECKING:
    from pykvm.machine.disks import Disk, DiskConfig, IoStatus

__all__ = [
    "ConsoleMode",
    "Disk",
    "DiskConfig",
    "IoStatus",
    "Machine",
    "MachineConfig",
    "RunState",
]


def __getattr__(name: str) -> object:
    # A machine without disks does not need them.
    if name not in ("Disk", "DiskConfig", "IoStatus"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pykvm.machine import disks

    return getattr(disks, name)
