"""``pykvm snapshot restore``: ``pykvm boot`` with a guest that is there already."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.cli.boot.options import (
    GUEST_OPTIONS,
    RUN_OPTIONS,
    boot_parser,
    configuration,
    help_asked_for,
)
from pykvm.cli.paths import path_text
from pykvm.cli.quick_options import Option, Options, parse_options
from pykvm.cli.say import emit
from pykvm.errors import UsageError
from pykvm.kvm.probe_cache import host_traits
from pykvm.kvm.system import Kvm
from pykvm.lean.records import replace
from pykvm.machine.bundle import BUNDLED
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.guest import EMULATED, NATIVE, resolve
from pykvm.machine.identity import guest_hash
from pykvm.machine.timings import Timings
from pykvm.snapshot.folder import read_manifest

if TYPE_CHECKING:
    from pykvm.cli.parser import Parser

OPTIONS = (
    Option(("folder",), "the snapshot", "DIR", parse=path_text),
    *GUEST_OPTIONS,
    *RUN_OPTIONS,
)


def run_restore(arguments: Sequence[str], own_process: bool) -> int:
    """Run ``pykvm snapshot restore`` and return the exit status."""
    from pykvm.cli.boot.run import run_options

    timings = Timings()
    timings.mark("pykvm imported")
    options = parse_options(OPTIONS, arguments, _parser)
    if text := help_asked_for(options):
        emit(text)
        return 0
    if options.folder is None:
        raise UsageError("there is no snapshot named", "write: pykvm snapshot restore DIR")
    config = fitting(options, options.folder)
    if options.command is not None and not config.agent:
        raise UsageError(
            "this guest was booted without its agent, so it takes no command",
            "write to its console: pass commands on standard input instead of --exec",
        )
    return run_options(options, config, timings, own_process, snapshot=options.folder)


def _parser() -> "Parser":
    return boot_parser(
        "pykvm snapshot restore",
        "Run the guest that DIR holds, as 'pykvm boot' would. Give the guest, --kernel, --initrd, "
        "--append and disks as at its boot. More disks are new to it.",
        OPTIONS,
    )


def fitting(options: Options, folder: str) -> MachineConfig:
    """The configuration of ``options`` that belongs to the snapshot ``folder``; SnapshotError.

    Memory, CPUs and the program on the console are the snapshot's, unless the options say more. If
    none belongs to it, the one of the options, with which a machine cannot be made.
    """
    if options.guest is None and options.kernel is None:
        options.guest = BUNDLED
    manifest = read_manifest(Path(folder))
    config = configuration(options)
    if options.memory is None and isinstance(memory := manifest.get("memory"), int):
        config = replace(config, memory=memory)
    if options.cpus is None and isinstance(cpus := manifest.get("cpus"), int):
        config = replace(config, cpus=cpus)
    with Kvm.open() as kvm:
        flavour = EMULATED if host_traits(kvm).needs_assists else NATIVE
    for console in (config.console, *ConsoleMode):
        agent = console is not ConsoleMode.PIPE
        found = replace(config, console=console, agent=agent)
        if guest_hash(resolve(found, flavour), found.cpus) == manifest.get("guest"):
            return found
    return config
