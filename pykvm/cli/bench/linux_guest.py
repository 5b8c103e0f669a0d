"""The Linux guest of ``bench fio`` and ``bench compare``: its options, its disks, its start."""

import argparse
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pykvm.bench.image import MIB, SIZE_MIN, size_of, temporary_disk
from pykvm.cli.disk_keys import parse_disk
from pykvm.cli.paths import parse_path
from pykvm.cli.say import say
from pykvm.cli.values import parse_count, parse_memory, parse_size
from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import UsageError, shown
from pykvm.guest.boot import started
from pykvm.guest.guest import Guest
from pykvm.guest.start import Start
from pykvm.guest.waiting import Limit
from pykvm.kvm.probe_cache import host_traits
from pykvm.kvm.system import Kvm
from pykvm.lean.records import replace
from pykvm.machine.bundle import BUNDLED
from pykvm.machine.config import ConsoleMode, MachineConfig

DISK_SIZE, EMULATED_DISK_SIZE = 256 * MIB, 16 * MIB
"""The default sizes of a temporary disk."""
START_SECONDS = 180.0


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """The options of the guest that are common to the commands."""
    add = parser.add_argument
    add("--guest", metavar="GUEST", default=BUNDLED, help="a guest with pykvm's agent and fio")
    add("--kernel", metavar="FILE", type=parse_path, help="boot this kernel instead of GUEST's")
    add("-m", "--memory", metavar="SIZE", help="guest memory (default: GUEST's own)")
    add("--cpus", metavar="N", default="1", help="virtual CPUs (default: 1)")
    add(
        "--guest-merging",
        choices=("on", "off"),
        default="on",
        help="off: the guest's kernel merges no requests before the driver gets them, so that "
        "merging is left to the device (default: on)",
    )


def is_emulated() -> bool:
    """True if this host emulates the guest's kernel code. HostError."""
    with Kvm.open() as kvm:
        return host_traits(kvm).needs_assists


def disks_of(
    stack: ExitStack,
    texts: Sequence[str],
    size_text: str | None,
    emulated: bool,
    progress: Callable[[str], None],
) -> list[DiskConfig]:
    """The disks of ``--disk``, with a temporary file for each folder, and without ``texts``.

    UsageError.
    """
    size = EMULATED_DISK_SIZE if emulated else DISK_SIZE
    if size_text is not None:
        size = parse_size(size_text) // 4096 * 4096
    if size < SIZE_MIN:
        raise UsageError("--disk-size is less than 1 MiB", "write it like 256M")
    if not texts:
        progress(f"making a disk of {size // MIB} MiB")
        return [DiskConfig(stack.enter_context(temporary_disk(None, size)))]
    found = []
    for text in texts:
        config = parse_disk(text)
        path = Path(config.path)
        if not config.blank and path.is_dir():
            progress(f"making a disk of {size // MIB} MiB")
            config = replace(config, path=stack.enter_context(temporary_disk(path, size)))
        elif size_text is not None:
            raise UsageError(
                "--disk-size applies only to temporary disks",
                "leave it out, or give --disk a folder",
            )
        elif not config.blank:
            size_of(path)
        found.append(config)
    return found


def keeps_image(config: DiskConfig) -> bool:
    """True unless writes of the guest would change the disk's image."""
    return bool(config.blank or config.snapshot or config.readonly)


def guest_config(options: argparse.Namespace, disks: Sequence[DiskConfig]) -> MachineConfig:
    """The machine of the guest; UsageError."""
    return MachineConfig(
        guest=options.guest,
        kernel=options.kernel,
        agent=True,
        console=ConsoleMode.NONE,
        cpus=parse_count(options.cpus),
        disks=tuple(disks),
        **({} if options.memory is None else parse_memory(options.memory)),
    )


def start_guest(stack: ExitStack, config: MachineConfig, progress: Callable[[str], None]) -> Guest:
    """The guest of ``config``, ready for commands. UsageError, HostError, GuestDied, …."""
    progress("starting the guest")
    limit = Limit(START_SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the notices say the same
        guest = started(Start(config), limit, limit.deadline(None))
    stack.enter_context(guest)
    for notice in guest.machine.notices:
        say(shown(notice))
    return guest


def unmerged(guest: Guest) -> None:
    """Have the guest's kernel merge no requests of its disks."""
    guest.run("for q in /sys/block/vd*/queue/nomerges; do echo 2 >$q; done")
