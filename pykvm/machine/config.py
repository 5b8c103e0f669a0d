"""What a machine is made of: plain values, checked when the machine is built."""

from collections.abc import Sequence
from enum import Enum

from pykvm.records import record
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.machine.disks import DiskConfig
    from pykvm.trace.options import TraceOptions

MIB = 1 << 20
DEFAULT_MEMORY = 64 * MIB


class ConsoleMode(Enum):
    """What the bundled guest runs on its console (guest/README.md has its side of this)."""

    SHELL = "shell"
    """An interactive shell."""
    PIPE = "pipe"
    """A shell that reads a script: no prompt, no echo, Ctrl-D is the end of file."""
    NONE = "none"
    """Nothing: the guest is driven through its agent."""


@record
class MachineConfig:
    """A virtual machine before it exists.

    ``guest`` names a bundle (a name that comes with pykvm, or a folder); its
    kernel and initrd are used unless ``kernel`` and ``initrd`` are given.
    Without ``guest``, ``kernel`` is needed. ``initrd`` is a path or the bytes
    themselves. ``append`` goes at the end of the guest's command line.
    ``memory`` is in bytes; 0 means what the bundle says, or 64 MiB.
    ``cpu_affinity``: the host's CPUs that vCPUs run on, any if it is empty.
    ``console``, ``console_size`` (rows and columns of the terminal behind it)
    and ``agent`` (whether to run commands through it) are wishes that only
    bundles understand. ``trace`` has the disks tell a file what they do.
    """

    guest: str | None = None
    kernel: "Path | str | None" = None
    initrd: "Path | str | bytes | None" = None
    append: str = ""
    memory: int = 0
    cpus: int = 1
    cpu_affinity: frozenset[int] = frozenset()
    disks: "Sequence[DiskConfig]" = ()
    console: ConsoleMode = ConsoleMode.SHELL
    console_size: tuple[int, int] | None = None
    agent: bool = False
    trace: "TraceOptions | None" = None
