"""Boots a guest."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.forms import flag
from pykvm.guest.guest import Guest
from pykvm.guest.start import Start, configuration
from pykvm.guest.waiting import Deadline, Limit, seconds

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.trace.log import TraceLog
    from pykvm.trace.options import TraceOptions


def boot(
    guest: str | None = None,
    *,
    disks: "Sequence[DiskConfig | Path | str]" = ("64M",),
    memory: int | str = 0,
    cpus: int = 1,
    kernel: "Path | str | None" = None,
    initrd: "Path | str | bytes | None" = None,
    append: str = "",
    cold: bool = False,
    timeout: float = 60.0,
    entropy: str = "new",
    clock: float | None = None,
    trace: "TraceOptions | TraceLog | Path | str | None" = None,
) -> Guest:
    """Start a guest, and return it when it can run commands.

    ``guest`` is a bundle: None is pykvm's own, unless ``kernel`` is given. A ``kernel`` without a
    ``guest`` runs alone, with ``initrd`` if given: it has no agent, so :meth:`Guest.run` and the
    like cannot be used, and the call returns as soon as the kernel runs.

    ``disks`` are /dev/vda, /dev/vdb, …: image files, DiskConfigs, or sizes such as ``"64M"`` of
    blank disks in memory. Each has a plan of failures (:attr:`Disk.faults`), which costs its
    requests a few microseconds. ``memory`` (bytes, or a size), ``cpus``, ``append`` and ``trace``
    are those of :class:`MachineConfig`. ``timeout`` limits the start, and is the usual limit of
    later waits (:attr:`Guest.timeout`).

    The first guest of its kind boots, which takes seconds, and leaves a template in the cache
    folder. Later ones begin from that. ``cold``: boot in any case, as if the cache were empty.

    ``clock`` is the guest's time when it is ready, in seconds since 1970; None: the host's. With
    ``entropy="new"`` a guest that begins from a template or a snapshot gets new random numbers.
    With ``"same"`` all guests that begin there draw the same ones from their kernel, for up to a
    minute, so that a run can be repeated. Timing, and all that depends on it, never repeats.

    UsageError for arguments that cannot be used, HostError if this host runs no VM, GuestDied if
    the guest ends before it can run commands, and GuestTimeout.
    """
    limit = Limit(seconds("timeout", timeout))
    deadline = limit.deadline(None)
    config = configuration(
        guest,
        kernel,
        {
            "disks": disks,
            "memory": memory,
            "cpus": cpus,
            "initrd": initrd,
            "append": append,
            "trace": trace,
        },
    )
    return started(Start(config, flag("cold", cold), entropy, clock), limit, deadline)


def started(start: Start, limit: Limit, deadline: Deadline) -> Guest:
    """The guest that ``start`` describes, when it can run commands. ``limit`` is for later waits.

    For errors see :func:`boot`.
    """
    made = Guest(start, limit)
    made._run()
    made._wait_ready(deadline)
    return made
