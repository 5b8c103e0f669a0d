"""The configuration of a machine: plain values. Building the machine checks them."""

from collections.abc import Sequence
from enum import Enum

from pykvm import forms
from pykvm.lean.records import record
from pykvm.lean.typing_names import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.trace.log import TraceLog
    from pykvm.trace.options import TraceOptions

MIB = 1 << 20
DEFAULT_MEMORY = 64 * MIB


class ConsoleMode(Enum):
    """The program that the bundled guest runs on its console (guest/README.md)."""

    SHELL = "shell"
    """An interactive shell."""
    PIPE = "pipe"
    """A shell that reads a script, without prompt and echo. The byte 4 (Ctrl-D) ends the script.
    The byte 22 (Ctrl-V) makes the byte after it, such as 4 or 22, a part of the script."""
    NONE = "none"
    """No program: the guest runs commands through its agent only."""


@record
class MachineConfig:
    """The parts of a virtual machine; it needs a ``guest`` or a ``kernel``.

    UsageError for a value of the wrong kind. The Machine refuses values that this host does not
    support. A member of an enumeration may be given by its value, as ``"none"``.
    """

    guest: str | None = None
    """A bundle: ``"guest"``, which comes with pykvm, or a folder with a bundle.json."""
    kernel: "Path | str | None" = None
    """The file of a kernel, instead of the bundle's."""
    initrd: "Path | str | bytes | None" = None
    """The initial RAM disk, instead of the bundle's: a file, or its content."""
    append: str = ""
    """The end of the kernel's command line, after the options of the bundle and of pykvm."""
    memory: int = 0
    """Bytes, or a size such as ``"128M"``; 0: the bundle's own, or else 64 MiB."""
    shared_memory: bool = False
    """Keep the guest's memory in a memfd, which another process can map."""
    thp: bool = True
    """Ask the host for pages of 2 MiB (transparent huge pages)."""
    cpus: int = 1
    """The number of virtual CPUs. The bundled guest's kernel may use only the first."""
    cpu_affinity: frozenset[int] = frozenset()
    """The host's CPUs that virtual CPUs run on; empty: any."""
    disks: "Sequence[DiskConfig]" = ()
    """At most 30 disks, in the order of /dev/vda, /dev/vdb, …; a path stands for its DiskConfig,
    and a size such as ``"64M"`` for a blank disk. A file of that name is ``"./64M"``."""
    console: ConsoleMode = ConsoleMode.SHELL
    """The program on the guest's console. Bundles only."""
    console_size: tuple[int, int] | None = None
    """Rows and columns of the terminal behind the console. Bundles only."""
    agent: bool = False
    """Start the agent, which :func:`~pykvm.machine.command.run_command` needs. Bundles only."""
    trace: "TraceOptions | TraceLog | None" = None
    """Write every step of the disks to a file; a path stands for its TraceOptions. A TraceLog
    keeps them in memory."""

    def __post_init__(self) -> None:
        forms.adapt(self, _FORMS)


def _guest(name: str, value: object) -> str:
    return str(forms.file_name(name, value))


def _disks(name: str, value: object) -> "tuple[DiskConfig, ...]":
    if not isinstance(value, list | tuple):
        raise forms.refused(name, value, "give a list of paths or DiskConfigs")
    if not value:
        return ()
    return tuple(disk_config(name, one) for one in value)


def disk_config(name: str, value: object) -> "DiskConfig":
    """The disk that ``value`` stands for: a DiskConfig, a path, or a size such as ``"64M"``."""
    # Only configurations with disks need it.
    from pykvm.devices.virtio_blk.open import DiskConfig

    if isinstance(value, DiskConfig):
        return value
    if isinstance(value, str) and not value.isdigit() and forms.parse_bytes(value) > 0:
        return DiskConfig(blank=forms.size(name, value))
    return DiskConfig(value)  # type: ignore[arg-type]


def _console_size(name: str, value: object) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2:
        return forms.whole(name, value[0]), forms.whole(name, value[1])
    raise forms.refused(name, value, "give the numbers of rows and columns")


def _trace(name: str, value: object) -> "TraceOptions | TraceLog":
    from pykvm.trace.log import TraceLog
    from pykvm.trace.options import TraceOptions

    if isinstance(value, TraceOptions | TraceLog):
        return value
    return TraceOptions(forms.path(name, value))


_FORMS: "Final[dict[str, forms.Form]]" = {
    "guest": _guest,
    "kernel": forms.file_or_bytes,
    "initrd": forms.file_or_bytes,
    "append": forms.text,
    "memory": forms.size,
    "shared_memory": forms.flag,
    "thp": forms.flag,
    "cpus": forms.whole,
    "cpu_affinity": forms.cpus,
    "disks": _disks,
    "console": forms.member(ConsoleMode),
    "console_size": _console_size,
    "agent": forms.flag,
    "trace": _trace,
}
