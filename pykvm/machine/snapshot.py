"""Saves a machine as a snapshot, and gives a new machine the saved state.

A snapshot holds the vCPUs, KVM's chips and clock, the devices of the board, and
RAM. It holds no disks: a machine with disks cannot be saved. Disks are plugged
into the restored machine, whose guest finds them when it scans its PCI bus.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from mmap import PAGESIZE
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm import __version__
from pykvm.digests import content_digest
from pykvm.errors import UsageError, reason_of
from pykvm.kvm import snapshot as kvm_snapshot
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.machine.board import Board
from pykvm.machine.cpu import cpuid_of
from pykvm.machine.create import Hardware
from pykvm.machine.guest import ResolvedGuest
from pykvm.machine.run_state import RunState
from pykvm.memory import GuestMemory
from pykvm.memory.guest import MAX_SIZE, MIN_SIZE
from pykvm.snapshot import folder
from pykvm.snapshot.fields import SnapshotError
from pykvm.x86.mptable import MAX_CPUS

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

_MOST_BLOCK = 1 << 20
"""Bytes of one structure of KVM's; the largest, the floating-point state, has some 11 KiB."""
_CACHE_LEAVES = (2, 4, 0x18, 0x8000_0005, 0x8000_0006, 0x8000_001D)
"""CPUID leaves on caches, which may differ between the processors of one host."""


def save(machine: "Machine", path: "Path | str") -> None:
    """Write ``machine`` as the folder ``path``. See :meth:`Machine.save`."""
    if machine.disks:
        raise UsageError(
            "a machine with disks cannot be saved",
            "save it without disks, and give them to the machine that is restored",
        )
    if machine.status not in (RunState.RUNNING, RunState.PAUSED):
        raise UsageError("this machine does not run", "save it while the guest runs or is paused")
    # No monitor or listener can end this pause, and no event tells of it.
    with machine.paused():
        if machine.outcome is not None:
            raise UsageError("the run of this machine is over", "save it while the guest runs")
        _write(machine.hardware, machine.board, Path(path), machine.description)


def _write(hardware: Hardware, board: Board, path: Path, description: str) -> None:
    vm, vcpus, memory = hardware.vm, hardware.vcpus, hardware.memory
    msrs = hardware.kvm.msr_indices()
    state = {
        "vcpus": [kvm_snapshot.save_vcpu(vcpu, vm, msrs) for vcpu in vcpus],
        "chips": kvm_snapshot.save_chips(vm),
        "board": board.save(),
    }
    manifest = {
        "id": os.urandom(16).hex(),
        "pykvm": __version__,
        "saved_at": int(time.time()),
        "description": description,
        "guest": _guest_hash(hardware.guest, len(vcpus)),
        "cpus": len(vcpus),
        "memory": memory.size,
        "assisted": hardware.traits.needs_assists,
        "cpuid": _cpuid_hash(hardware.cpuid, len(vcpus)),
    }
    folder.write(path, manifest, state, memory.ram.bytes)


class SavedMachine:
    """An open snapshot of a machine: ``cpus``, ``memory`` in bytes, ``description``."""

    def __init__(self, path: "Path | str") -> None:
        """Open the folder ``path``. SnapshotError."""
        self._opened = opened = folder.OpenSnapshot(Path(path))
        try:
            manifest = opened.manifest
            self.id = manifest.text("id", 64)
            self.version = manifest.text("pykvm", 64)
            self.saved_at = manifest.integer("saved_at", 0, 1 << 40)
            self.description = manifest.text("description", 4096)
            self._guest = manifest.data("guest", 32, 32)
            self.cpus = manifest.integer("cpus", 1, MAX_CPUS)
            self.memory = manifest.integer("memory", MIN_SIZE, MAX_SIZE)
            self._assisted = manifest.flag("assisted")
            self._cpuid = manifest.data("cpuid", 32, 32)
            manifest.end()
            if self.memory % PAGESIZE:
                manifest.refuse(f"memory is {self.memory}, no multiple of {PAGESIZE}")
            if opened.ram_size != self.memory:
                manifest.refuse(f"memory is {self.memory}, but ram has {opened.ram_size} bytes")
        except BaseException:
            opened.close()
            raise

    def close(self) -> None:
        """Close the files. Memory stays mapped."""
        self._opened.close()

    def map_memory(self, guest: ResolvedGuest, cpus: int) -> GuestMemory:
        """Memory that begins as the saved one, privately: other machines may map it too.

        SnapshotError unless a machine with ``guest`` and ``cpus`` was saved.
        """
        if _guest_hash(guest, cpus) != self._guest:
            raise SnapshotError(
                f"the snapshot {self._opened.folder} belongs to a different guest, or to "
                "other options",
                "configure the same guest, command line, CPUs and memory, or make a new snapshot",
            )
        return GuestMemory(self.memory, file=self._opened.ram)

    def load(self, hardware: Hardware, board: Board) -> None:
        """Give ``hardware`` and ``board``, which are new, the saved state. SnapshotError."""
        cpuid, state = hardware.cpuid, self._opened.state
        assisted = hardware.traits.needs_assists
        if assisted != self._assisted or _cpuid_hash(cpuid, self.cpus) != self._cpuid:
            raise SnapshotError(
                f"the snapshot {self._opened.folder} belongs to a different processor, or to "
                "a different KVM",
                "make a new snapshot on this host",
            )
        vm, vcpus = hardware.vm, hardware.vcpus
        tsc = 0
        for vcpu, saved in zip(vcpus, state.parts("vcpus", len(vcpus)), strict=True):
            vcpu.set_cpuid2(cpuid_of(cpuid, vcpu.index, len(vcpus)))
            tsc = kvm_snapshot.load_vcpu(vcpu, vm, saved.blocks(_MOST_BLOCK), tsc)
            if hardware.assist:
                hardware.assist.prepare(vcpu)
        kvm_snapshot.load_chips(vm, state.part("chips").blocks(_MOST_BLOCK))
        board.load(state.part("board"))
        state.end()


def _cpuid_hash(cpuid: Sequence[CpuidEntry], cpus: int) -> bytes:
    """A hash of the first vCPU's CPUID leaves. KVM's own differ with the CPU that asks for them."""
    text = ";".join(
        f"{e.function:x},{e.index:x},{e.flags:x},{e.eax:x},{e.ebx:x},{e.ecx:x},{e.edx:x}"
        for e in cpuid_of(cpuid, 0, cpus)
        if e.function not in _CACHE_LEAVES
    )
    return hashlib.sha256(text.encode()).digest()


def _guest_hash(guest: ResolvedGuest, cpus: int) -> bytes:
    """A hash of all that decides how the guest boots. Files count by their contents."""
    options = [option for option in guest.options if not option.startswith("pykvm.size=")]
    parts = [_content(guest.kernel), _content(guest.initrd), *options, guest.append]
    parts += [str(cpus), str(guest.memory)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()


def _content(file: "Path | str | bytes | None") -> str:
    if file is None:
        return ""
    if isinstance(file, bytes):
        return hashlib.sha256(file).hexdigest()
    try:
        return content_digest(file)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {reason_of(error)}", "give the file that the guest booted from"
        ) from None
