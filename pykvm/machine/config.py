"""What a machine is made of: plain values, checked when the machine is built."""

from collections.abc import Sequence
from enum import Enum

from pykvm import forms
from pykvm.lean.records import record
from pykvm.lean.typing_names import TYPE_CHECKING, Final

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
    """A shell that reads a script: no prompt, no echo. Ctrl-D (4) is the end of the script, and
    Ctrl-V (22) makes the byte after it, such as one of these two, a part of it."""
    NONE = "none"
    """Nothing: the guest is driven through its agent."""


@record
class MachineConfig:
    """A virtual machine before it exists. UsageError for a value of the wrong kind.

    ``guest`` names a bundle (a name that comes with pykvm, or a folder); its
    kernel and initrd are used unless ``kernel`` and ``initrd`` are given.
    Without ``guest``, ``kernel`` is needed. ``initrd`` is a path or the bytes
    themselves. ``append`` goes at the end of the guest's command line.
    ``memory`` is in bytes, or a size such as ``"128M"``; 0 means what the bundle
    says, or 64 MiB. ``shared_memory`` puts it into a memfd, which another process
    can map; ``thp`` asks the host for pages of 2 MiB
    (:class:`~pykvm.memory.guest.GuestMemory`). Of ``disks`` and ``trace`` a path alone will do.
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
    shared_memory: bool = False
    thp: bool = True
    cpus: int = 1
    cpu_affinity: frozenset[int] = frozenset()
    disks: "Sequence[DiskConfig]" = ()
    console: ConsoleMode = ConsoleMode.SHELL
    console_size: tuple[int, int] | None = None
    agent: bool = False
    trace: "TraceOptions | None" = None

    def __post_init__(self) -> None:
        forms.adapt(self, _FORMS)


def _guest(name: str, value: object) -> str:
    return str(forms.file_name(name, value))


def _disks(name: str, value: object) -> "tuple[DiskConfig, ...]":
    if not isinstance(value, list | tuple):
        raise forms.refused(name, value, "give a list of paths or DiskConfigs")
    if not value:
        return ()
    # Not at the top: it is for those who want disks.
    from pykvm.machine.disks import DiskConfig

    return tuple(one if isinstance(one, DiskConfig) else DiskConfig(one) for one in value)


def _console_size(name: str, value: object) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2:
        return forms.whole(name, value[0]), forms.whole(name, value[1])
    raise forms.refused(name, value, "give the numbers of rows and columns")


def _trace(name: str, value: object) -> "TraceOptions":
    from pykvm.trace.options import TraceOptions

    return value if isinstance(value, TraceOptions) else TraceOptions(forms.path(name, value))


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
