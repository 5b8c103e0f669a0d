"""Boots a guest."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.guest.guest import Guest
from pykvm.guest.start import Start
from pykvm.guest.waiting import Limit, seconds
from pykvm.machine.config import ConsoleMode, MachineConfig

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.trace.options import TraceOptions


def boot(
    guest: str | None = None,
    *,
    disks: "Sequence[DiskConfig | Path | str]" = (),
    memory: int | str = 0,
    cpus: int = 1,
    kernel: "Path | str | None" = None,
    initrd: "Path | str | bytes | None" = None,
    append: str = "",
    timeout: float = 60.0,
    trace: "TraceOptions | Path | str | None" = None,
) -> Guest:
    """Start a guest, and return it when it can run commands.

    ``guest`` is a bundle: None is pykvm's own, unless ``kernel`` is given. A ``kernel`` without a
    ``guest`` runs alone, with ``initrd`` if given: it has no agent, so :meth:`Guest.run` and the
    like cannot be used, and the call returns as soon as the kernel runs.

    ``disks`` are /dev/vda, /dev/vdb, …: image files, or DiskConfigs. ``memory`` (bytes, or a
    size), ``cpus``, ``append`` and ``trace`` are those of :class:`MachineConfig`. ``timeout``
    limits the start, and is the usual limit of later waits (:attr:`Guest.timeout`).

    UsageError for arguments that cannot be used, HostError if this host runs no VM, GuestDied if
    the guest ends before it can run commands, and GuestTimeout.
    """
    limit = Limit(seconds("timeout", timeout))
    if guest is None and kernel is None:
        guest = "guest"
    options: dict[str, Any] = {"memory": memory, "cpus": cpus, "disks": disks, "trace": trace}
    options |= {"guest": guest, "kernel": kernel, "initrd": initrd, "append": append}
    if guest is not None:
        options |= {"agent": True, "console": ConsoleMode.NONE}
    config = MachineConfig(**options)
    return Guest(Start(config), limit)
