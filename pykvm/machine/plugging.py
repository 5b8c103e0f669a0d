"""Disks are plugged into a machine and unplugged, also while the guest runs."""

from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path

from pykvm.devices.virtio_blk.open import DiskConfig, open_disk
from pykvm.errors import UsageError
from pykvm.kvm.pci_services import KvmPciServices
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.config import disk_config
from pykvm.machine.create import check_disks
from pykvm.machine.disks import Disk
from pykvm.machine.tracing import disk_trace
from pykvm.pci.host import MAX_DEVICES
from pykvm.pci.virtio_pci import VirtioPci

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine


def plug(machine: "Machine", config: DiskConfig, services: KvmPciServices) -> Disk:
    """Open the disk of ``config``, and plug it in. UsageError."""
    used = {disk.name for disk in machine.disks}
    name = next(name for at in range(MAX_DEVICES) if (name := f"virtio{at}") not in used)
    reports = machine.disk_reports(name)
    with ExitStack() as undo:
        opened = open_disk(config, reports.hooks, trace=disk_trace(machine.trace, name))
        undo.callback(opened.close)
        function = VirtioPci(opened.device, machine.ram, services)
        # Before the guest can find it: a disk that fails reports that.
        disk = reports.disk = Disk(name, opened, function)
        machine.board.pci.add(function)
        undo.pop_all()  # the bus closes it from now on
    machine.disks.append(disk)
    # A snapshot of the machine has them in the order of the bus.
    machine.disks.sort(key=attrgetter("number"))
    machine.notices += opened.image.notices
    return disk


def add_disk(machine: "Machine", disk: DiskConfig | Path | str, services: KvmPciServices) -> Disk:
    """See :meth:`Machine.add_disk`. The guest is neither stopped nor resumed meanwhile."""
    config = disk_config("disk", disk)
    check_disks([*(one.config for one in machine.disks), config])
    if machine.outcome is not None:
        raise UsageError("the run of this machine is over", "add disks before its end")
    machine.unseen_disks = True
    return plug(machine, config, services)


def remove_disk(machine: "Machine", disk: Disk) -> None:
    """See :meth:`Machine.remove_disk`. The guest is neither stopped nor resumed meanwhile."""
    if disk not in machine.disks:
        raise UsageError("the machine does not have this disk", "give one of machine.disks")
    with machine.paused():
        unplug(machine, disk)


def unplug(machine: "Machine", disk: Disk) -> None:
    """Unplug ``disk`` and close it. No vCPU runs."""
    machine.disks.remove(disk)
    machine.board.pci.remove(disk.number)
