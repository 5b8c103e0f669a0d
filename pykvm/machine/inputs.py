"""The files that a machine reads. Only runs that write files import this."""

from pathlib import Path

from pykvm.machine.bundle import bundle_files
from pykvm.machine.config import MachineConfig


def inputs_of(config: MachineConfig) -> list[Path]:
    """The paths of all files that a machine of ``config`` may read, as far as they are known."""
    found = [Path(disk.path) for disk in config.disks]
    found += [Path(disk.faults.path) for disk in config.disks if disk.faults and disk.faults.path]
    found += [Path(file) for file in (config.kernel, config.initrd) if isinstance(file, str | Path)]
    if config.guest is not None:
        found += bundle_files(config.guest)
    return found
