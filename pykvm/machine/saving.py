"""Takes snapshots of running machines, and writes them into folders.

The guest waits while its state is read and its RAM is frozen, which takes some
milliseconds. Writing a snapshot to a folder takes longer, and no guest waits for it.
"""

import os
import time
from pathlib import Path

from pykvm import __version__
from pykvm.errors import reason_of
from pykvm.kvm import snapshot as kvm_snapshot
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.snapshot import MachineSnapshot, check_can_be_kept, check_runs, close_layers
from pykvm.snapshot.fields import Fields, SnapshotError

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.layers.frozen import Layers
    from pykvm.machine.machine import Machine
    from pykvm.memory.frozen import Copy


def take(machine: "Machine") -> MachineSnapshot:
    """A snapshot of ``machine``. See :meth:`Machine.snapshot`."""
    check_runs(machine, "save it while the guest runs or is paused")
    check_can_be_kept(machine.config)
    memory = machine.memory
    copy: Copy | None = None
    layers: list[Layers | None] = []
    manifest = _manifest(machine)
    try:
        for disk in machine.disks:
            disk.prepare_freeze()
        copy = memory.begin_copy()
        with machine.still():
            check_runs(machine, "save it while the guest runs or is paused")
            manifest |= {"disks": len(machine.disks), "failed": machine.failed}
            manifest |= {"unseen_disks": machine.unseen_disks}
            state = _state(machine)
            for disk in machine.disks:
                layers.append(disk.freeze())
            with machine.hold_mailbox():
                frozen = memory.freeze(copy)
            if machine.hardware.assist:
                for vcpu in machine.hardware.vcpus:
                    kvm_snapshot.forget_translations(vcpu)
    except BaseException as error:
        close_layers(layers)
        if not isinstance(error, OSError) or isinstance(error, TimeoutError):
            raise
        raise SnapshotError(
            f"the host cannot keep the guest's memory: {reason_of(error)}",
            "free memory of the host; a confined process cannot take snapshots",
        ) from None
    finally:
        if copy is not None:
            copy.close()
    return MachineSnapshot(manifest, state, frozen, layers)


def save(machine: "Machine", path: "Path | str") -> None:
    """Write ``machine`` as the folder ``path``. See :meth:`Machine.save`."""
    from pykvm.snapshot.writing import check_place

    check_place(Path(path))
    with machine.snapshot() as taken:
        taken.write(path)


def _manifest(machine: "Machine") -> Fields:
    hardware = machine.hardware
    return {
        "id": _new_uuid(),
        "pykvm": __version__,
        "saved_at": int(time.time()),
        "description": machine.description,
        "guest": hardware.guest_hash,
        "cpus": hardware.cpus,
        "memory": hardware.memory.size,
        "assisted": hardware.traits.needs_assists,
        "cpuid": hardware.cpuid_hash,
    }


def _state(machine: "Machine") -> Fields:
    """The state of a machine that stands still. SnapshotError."""
    hardware = machine.hardware
    vm, vcpus, msrs = hardware.vm, hardware.vcpus, hardware.kvm.msr_indices()
    return {
        "vcpus": [kvm_snapshot.save_vcpu(vcpu, vm, msrs) for vcpu in vcpus],
        "chips": kvm_snapshot.save_chips(vm),
        "board": machine.board.save(),
        "disks": [disk.save() for disk in machine.disks],
    }


def _new_uuid() -> str:
    """A random UUID (RFC 9562, version 4). The module uuid takes 3 ms to import."""
    number = int.from_bytes(os.urandom(16), "big")
    number = number & ~(0xF << 76 | 0x3 << 62) | 4 << 76 | 2 << 62
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
