"""``pykvm snapshot info`` and ``verify``: what a folder holds, and whether it can be used here."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.cli.say import emit
from pykvm.errors import PykvmError, shown
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.snapshot import MachineSnapshot
from pykvm.names import json_text, name_fields

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.open import DiskConfig


def show_info(folder: str, config: MachineConfig, as_json: bool) -> int:
    """Print what the snapshot ``folder`` holds; SnapshotError. The exit status is 0."""
    with MachineSnapshot.open(folder) as snapshot:
        found = {
            **name_fields("folder", os.path.abspath(folder)),
            "id": snapshot.id,
            "description": snapshot.description,
            "pykvm": snapshot.version,
            "saved_at": snapshot.saved_at,
            "cpus": snapshot.cpus,
            "memory": snapshot.memory,
            "bytes": _bytes(folder),
            "disks": [_disk(config) for config in snapshot.disk_configs],
            "problem": _problem(config, snapshot),
        }
    emit(json_text(found) + "\n" if as_json else _text(found))
    return 0


def verify(folder: str, as_json: bool) -> int:
    """Read the whole snapshot ``folder``; SnapshotError if it has changed."""
    with MachineSnapshot.open(folder) as snapshot:
        snapshot.verify()
        id = snapshot.id
    if as_json:
        emit(json_text({**name_fields("folder", os.path.abspath(folder)), "id": id}) + "\n")
    else:
        emit(f"{shown(folder)} is the snapshot {id}, as it was written\n")
    return 0


def _problem(config: MachineConfig, snapshot: MachineSnapshot) -> str | None:
    """Why no machine of ``config`` can begin from ``snapshot`` on this host; None if one can."""
    try:
        if config.disks or not any(disk.path for disk in snapshot.disk_configs):
            Machine(config, snapshot=snapshot).close()
        else:
            # Only the user can say which files its disks are now.
            with Machine(config) as made:
                snapshot.check(made.hardware)
    except PykvmError as error:
        return str(error)
    return None


def _disk(config: "DiskConfig") -> dict[str, Any]:
    if config.blank:
        return {"blank": config.blank}
    options = {"readonly": config.readonly, "snapshot": config.snapshot}
    return {**name_fields("path", config.path), **options}


def _disk_text(disk: dict[str, Any]) -> str:
    if "blank" in disk:
        return f"blank, {disk['blank'] / (1 << 20):.1f} MiB"
    switches = "".join(f",{name}=on" for name in ("readonly", "snapshot") if disk[name])
    return f"{disk['path']}{switches} (to be named by --disk)"


def _bytes(folder: str) -> int:
    """The space that the folder takes on its filesystem."""
    return sum(file.stat().st_blocks * 512 for file in Path(folder).iterdir())


def _text(found: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(found["saved_at"]))
    rows = {
        "snapshot": found["id"],
        "kernel": found["description"],
        "saved": f"{when}, by pykvm {found['pykvm']}",
        "machine": f"{found['cpus']} CPU{'s' if found['cpus'] > 1 else ''}, "
        f"{found['memory'] >> 20} MiB of memory",
        **{f"disk {number}": _disk_text(disk) for number, disk in enumerate(found["disks"])},
        "size": f"{found['bytes'] / (1 << 20):.1f} MiB in {found['folder']}",
        "here": found["problem"] or "can be restored",
    }
    return "".join(f"{name:<9} {shown(text)}\n" for name, text in rows.items())
