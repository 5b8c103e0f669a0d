"""Snapshots of a machine, in memory and in folders, and machines that begin from them.

A snapshot holds the vCPUs, KVM's chips and clock, the devices of the board, RAM, and
the disks: the state of each, and the layers of its overlay, if it has one. Machines that
begin from it get the same disks. More disks may be plugged into them; the guest finds
these when it scans its PCI bus.
"""

import os
import re
from collections.abc import Sequence
from mmap import PAGESIZE
from pathlib import Path

from pykvm.errors import UsageError, shown
from pykvm.kvm import snapshot as kvm_snapshot
from pykvm.lean.typing_names import TYPE_CHECKING, Any, Self
from pykvm.machine.config import MachineConfig
from pykvm.machine.cpu import cpuid_of
from pykvm.machine.create import MAX_DISKS, Hardware
from pykvm.machine.run_state import RunState
from pykvm.memory import GuestMemory
from pykvm.memory.frozen import FrozenMemory
from pykvm.memory.guest import MAX_SIZE, MIN_SIZE
from pykvm.snapshot import folder
from pykvm.snapshot.fields import Fields, Saved, SnapshotError
from pykvm.x86.mptable import MAX_CPUS

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.layers.frozen import Layers
    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.machine.disks import Disk
    from pykvm.machine.machine import Machine

_UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MOST_BLOCK = 1 << 20
"""Bytes of one structure of KVM's; the largest, the floating-point state, has some 11 KiB."""


class MachineSnapshot:
    """A machine at one moment: :meth:`Machine.snapshot` takes it, or :meth:`open` reads it.

    Any number of machines may begin from it, also at the same time. They go on after
    :meth:`close`. It never changes. Any thread may call any method but :meth:`close`.

    ``id`` is a UUID. ``version`` is that of the pykvm that took it, at ``saved_at``, in seconds
    since 1970. ``description`` is the kernel's; ``cpus`` and ``memory``, in bytes, are the
    machine's, and ``disks`` is the number of its disks. ``failed``: an error of a disk had
    stopped the guest. ``unseen_disks``: see Machine. ``folder`` is the place from which the
    snapshot was opened, or None.
    """

    def __init__(
        self,
        manifest: Fields,
        state: Fields,
        memory: FrozenMemory,
        layers: "Sequence[Layers | None]" = (),
        folder: Path | None = None,
    ) -> None:
        """Own ``memory`` and ``layers``, one for each disk, from now on.

        SnapshotError if the manifest makes no sense.
        """
        self.folder = folder
        self.frozen = memory
        self.layers = layers
        self._state = state
        self._manifest = manifest
        try:
            self._read(Saved("manifest", manifest))
        except BaseException:
            self.close()
            raise

    def _read(self, manifest: Saved) -> None:
        self.id = manifest.text("id", 36)
        self.version = manifest.text("pykvm", 64)
        self.saved_at = manifest.integer("saved_at", 0, 1 << 40)
        self.description = manifest.text("description", 4096)
        self._guest = manifest.data("guest", 32, 32)
        self.cpus = manifest.integer("cpus", 1, MAX_CPUS)
        self.memory = manifest.integer("memory", MIN_SIZE, MAX_SIZE)
        self._assisted = manifest.flag("assisted")
        self.disks = manifest.integer("disks", 0, MAX_DISKS)
        self.failed = manifest.flag("failed")
        self.unseen_disks = manifest.flag("unseen_disks")
        self._cpuid = manifest.data("cpuid", 32, 32)
        if self.folder is not None:
            manifest.integer("format", folder.FORMAT, folder.FORMAT)
            hashes = manifest.part("hashes")
            for name in self._files():
                hashes.data(name, 32, 32)
            hashes.end()
        manifest.end()
        if not _UUID.fullmatch(self.id):
            manifest.refuse("id is no UUID")
        if self.memory % PAGESIZE:
            manifest.refuse(f"memory is {self.memory}, no multiple of {PAGESIZE}")
        if self.frozen.size != self.memory:
            manifest.refuse(f"memory is {self.memory}, but ram has {self.frozen.size} bytes")

    def _files(self) -> list[str]:
        """The files of the folder, but for the manifest."""
        layered = [number for number, layers in enumerate(self.layers) if layers is not None]
        disks = [f"disk{number}.{kind}" for number in layered for kind in ("data", "map")]
        return [folder.STATE, folder.RAM, *disks]

    @classmethod
    def open(cls, path: "Path | str") -> Self:
        """The snapshot in the folder ``path``, which must not change meanwhile. SnapshotError."""
        path = Path(path)
        with folder.OpenSnapshot(path) as opened:
            memory = FrozenMemory(os.dup(opened.ram), opened.ram_size)
            layers: list[Layers | None] = []
            try:
                disks = opened.state.get("disks")
                for number, saved in enumerate(disks if isinstance(disks, list) else []):
                    layers.append(_open_layers(opened, number) if _is_layered(saved) else None)
            except BaseException:
                memory.close()
                close_layers(layers)
                raise
        return cls(opened.manifest, opened.state, memory, layers, path)

    def __repr__(self) -> str:
        return f"<MachineSnapshot {self.id}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def manifest(self) -> dict[str, Any]:
        """The entries that identify the machine, as in ``manifest.json``."""
        return dict(self._manifest)

    def write(self, path: "Path | str") -> None:
        """Write the snapshot as the new folder ``path``. No guest waits for it.

        SnapshotError if that is impossible, and nothing is left. A folder is complete or absent,
        even if the process is killed.
        """
        from pykvm.snapshot.writing import write

        self.check_open()
        own = ("format", "hashes")
        entries = {name: value for name, value in self._manifest.items() if name not in own}
        write(Path(path), entries, self._state, self._write_memory, self._write_layers)

    def _write_memory(self, file: int) -> None:
        from pykvm.snapshot.content import write_memory

        with self.frozen.bytes as ram:
            write_memory(file, ram, self.frozen.ranges())

    def _write_layers(self, place: Path) -> None:
        for number, layers in enumerate(self.layers):
            if layers is not None:
                from pykvm.devices.virtio_blk.layers.layer_files import write_layers

                write_layers(layers, place, f"disk{number}")

    def verify(self) -> None:
        """Read the whole snapshot again. SnapshotError if it is not the one that was written.

        Nothing else compares the hashes of a folder's files, because that takes longer than a
        restore. A snapshot in memory cannot change.
        """
        self.check_open()
        if self.folder is not None:
            folder.verify(self.folder, self._manifest["hashes"])

    def check_open(self) -> None:
        """UsageError after :meth:`close`."""
        if self.frozen.closed:
            raise UsageError("the snapshot is closed", "close it when no machine needs it any more")

    def close(self) -> None:
        """Free memory and layers, unless machines still use them. May be repeated."""
        self.frozen.close()
        close_layers(self.layers)

    # -- machines that begin from it ------------------------------------------

    def map_memory(self, hardware: Hardware) -> GuestMemory:
        """Memory that begins as the saved one, privately: other machines may map it too.

        SnapshotError unless a machine with the guest of ``hardware`` was saved.
        """
        self._check_guest(hardware)
        return GuestMemory(self.memory, origin=self.frozen)

    def check(self, hardware: Hardware) -> None:
        """SnapshotError unless a machine with ``hardware`` could have been the saved one."""
        self._check_guest(hardware)
        assisted = hardware.traits.needs_assists
        if assisted != self._assisted or hardware.cpuid_hash != self._cpuid:
            raise SnapshotError(
                f"{self._name} belongs to a different processor, or to a different KVM",
                "make a new snapshot on this host",
            )

    def load(self, machine: "Machine", *, new: bool) -> None:
        """Give ``machine``, whose hardware :meth:`check` accepted, the saved state.

        It has the saved disks, and no others. ``new``: no vCPU has run yet. Otherwise it stands
        still. Its disks are paused afterwards. SnapshotError, and then it cannot be used.
        """
        state = Saved("state", self._state)
        hardware = machine.hardware
        vm, vcpus, tsc = hardware.vm, hardware.vcpus, 0
        for vcpu, saved in zip(vcpus, state.parts("vcpus", len(vcpus)), strict=True):
            if new:
                vcpu.set_cpuid2(cpuid_of(hardware.cpuid, vcpu.index, len(vcpus)))
            tsc = kvm_snapshot.load_vcpu(vcpu, vm, saved.blocks(_MOST_BLOCK), tsc)
            if hardware.assist:
                hardware.assist.prepare(vcpu)
        kvm_snapshot.load_chips(vm, state.part("chips").blocks(_MOST_BLOCK))
        parts = state.parts("disks", self.disks)
        if len(machine.disks) != self.disks:
            raise SnapshotError(
                f"{self._name} has {self.disks} disks, and the machine has {len(machine.disks)}",
                "configure the disks that were saved, in the same order",
            )
        for disk, saved, layers in zip(machine.disks, parts, self.layers, strict=True):
            disk.load(saved, layers)
        machine.board.load(state.part("board"))
        state.end()

    @property
    def disk_configs(self) -> "tuple[DiskConfig, ...]":
        """The configurations of the saved disks, without their faults. SnapshotError."""
        if not self.disks:
            return ()
        from pykvm.devices.virtio_blk.saved import config_of
        from pykvm.machine.disks import MOST_CONFIG

        return tuple(config_of(part.text("config", MOST_CONFIG)) for part in self._disk_parts())

    def check_reset(self, machine: "Machine") -> "list[Disk]":
        """UsageError or SnapshotError unless ``machine`` can be put back to this moment.

        Returns the disks that were added since.
        """
        self.check(machine.hardware)
        check_runs(machine, "make a new machine from the snapshot")
        check_can_be_kept(machine.config)
        return self._check_disks(machine.disks)

    def _check_disks(self, disks: "Sequence[Disk]") -> "list[Disk]":
        own = {disk.number: disk for disk in disks}
        for part in self._disk_parts():
            number = part.integer("number", 0, 31)
            disk = own.pop(number, None)
            if disk is None:
                raise UsageError(
                    f"the machine has no longer the disk with the PCI number {number} that "
                    "the snapshot has",
                    "make a new machine from the snapshot",
                )
            disk.check_can_go_back()
            disk.check(part)
        return list(own.values())

    def own_disks(self) -> "tuple[DiskConfig, ...]":
        """The disks of a machine whose configuration names none.

        UsageError if the snapshot comes from a folder, and a disk has an image: a folder that a
        stranger has made must not choose files of this host.
        """
        configs = self.disk_configs
        if self.folder is not None and any(config.path for config in configs):
            disks = " ".join(f"--disk {shown(disk_option(config), most=200)}" for config in configs)
            raise UsageError(f"{self._name} has disks with images", f"name its disks: {disks}")
        return configs

    def _disk_parts(self) -> list[Saved]:
        return Saved("state", self._state).parts("disks", self.disks)

    def _check_guest(self, hardware: Hardware) -> None:
        self.check_open()
        if hardware.guest_hash != self._guest:
            raise SnapshotError(
                f"{self._name} belongs to a different guest, or to other options",
                "configure the same guest, command line, CPUs and memory, or make a new snapshot",
            )

    @property
    def _name(self) -> str:
        return "the snapshot" if self.folder is None else f"the snapshot {self.folder}"


def disk_option(config: "DiskConfig") -> str:
    """The value of ``--disk`` for ``config``, with the options that decide about its image."""
    kinds = {"readonly": config.readonly, "snapshot": config.snapshot}
    chosen = [f",{name}=on" for name, given in kinds.items() if given]
    return config.name.replace(",", ",,") + "".join(chosen)


def _is_layered(saved: object) -> bool:
    """The fields of a disk, which nobody has checked yet, say that it has layers."""
    disk = saved.get("disk") if isinstance(saved, dict) else None
    return isinstance(disk, dict) and disk.get("layered") is True


def _open_layers(opened: folder.OpenFolder, number: int) -> "Layers":
    from pykvm.devices.virtio_blk.layers.layer_files import open_layers

    return open_layers(opened, f"disk{number}")


def close_layers(layers: "Sequence[Layers | None]") -> None:
    for one in layers:
        if one is not None:
            one.close()


def check_can_be_kept(config: MachineConfig) -> None:
    """UsageError if machines of ``config`` have no snapshots."""
    if config.shared_memory:
        raise UsageError(
            "a machine with shared memory has no snapshots: its memory would be shared no longer",
            "leave out shared=on",
        )


def check_runs(machine: "Machine", hint: str) -> None:
    if machine.status is RunState.PRELAUNCH or machine.status.over:
        raise UsageError("this machine does not run", hint)
