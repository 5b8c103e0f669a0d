"""The composition root: puts one VM together, runs it, and judges its end::

    with Machine(MachineConfig(kernel=Path("kernel.elf"))) as machine:
        outcome = machine.run(timeout=60)
        print(outcome.kind, outcome.status, machine.console_output.decode())

Nothing is global: any number of machines may live in one process.
"""

from pykvm.lean.lazy import lazy_names
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.run_state import RunState

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.machine.disks import Disk, IoStatus

__all__ = [
    "ConsoleMode",
    "Disk",
    "DiskConfig",
    "IoStatus",
    "Machine",
    "MachineConfig",
    "RunState",
]

if not TYPE_CHECKING:
    # A machine without disks does not need them.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "pykvm.devices.virtio_blk.open": "DiskConfig",
            "pykvm.machine.disks": "Disk IoStatus",
        },
    )
