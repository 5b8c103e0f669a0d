"""The options of ``pykvm boot``, and the machine's configuration that they describe."""

import os
from collections.abc import Sequence
from contextlib import suppress

from pykvm.cli.paths import parse_path, path_text
from pykvm.cli.quick_options import Option, Options, add_options
from pykvm.cli.say import STDIN
from pykvm.cli.values import parse_count, parse_cpus, parse_memory
from pykvm.errors import UsageError
from pykvm.lean.typing_names import TYPE_CHECKING, Final
from pykvm.machine.config import ConsoleMode, MachineConfig

if TYPE_CHECKING:
    from pykvm.cli.parser import Parser
    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.trace import TraceOptions

EPILOG = """\
On a terminal: Ctrl-a x ends the run, Ctrl-a h shows more keys, Ctrl-a Ctrl-a sends one Ctrl-a.
Exit status: the guest's own; 2 usage, 77 no KVM, 124 timeout, 125 pykvm failed,
126 guest panic or triple fault, 128+N ended by signal N."""


OPTIONS: Final = (
    Option(("guest",), "'guest' (bundled) or a folder with bundle.json", "GUEST"),
    Option(("--kernel",), "vmlinux, bzImage or ELF with a PVH note", "FILE", parse=path_text),
    Option(("--initrd",), "initial RAM disk", "FILE", parse=path_text),
    Option(("--append",), "add to the command line", "STR", repeated=True),
    Option(
        ("-m", "--memory"),
        "guest memory, like 64M (the default); shared=on: in a memfd, thp=off: in 4 KiB pages",
        "SIZE[,KEY=VALUE...]",
    ),
    Option(("--cpus",), "virtual CPUs (1)", "N", "1"),
    Option(("--cpu-affinity",), "the host's CPUs that they run on, like 0,2-3 (any)", "CPUS"),
    Option(
        ("--disk",),
        "virtio-blk disk: raw image or block device; may be repeated; 'help' lists the keys",
        "PATH[,KEY=VALUE...]",
        repeated=True,
    ),
    Option(("--exec",), "run CMD in the bundled guest and end", "CMD", dest="command"),
    Option(
        ("--snapshot",),
        "begin where the guest has booted, as saved in DIR; the first run makes DIR (with --exec)",
        "DIR",
        parse=path_text,
    ),
    Option(("--timeout",), "end the guest after S seconds (status 124)", "S"),
    Option(("--console-log",), "also write the console to FILE", "FILE", parse=path_text),
    Option(
        ("--stats",),
        "write statistics as JSON at the end; '-': print them",
        "FILE",
        parse=path_text,
    ),
    Option(("--monitor",), "serve QMP on a UNIX socket made at PATH", "PATH", parse=parse_path),
    Option(
        ("--trace",),
        "write what the disks do to FILE; 'help' tells of formats and events",
        "FILE[,KEY=VALUE...]",
    ),
    Option(
        ("--sandbox",),
        "confine pykvm while the guest runs: as far as the host can (auto), fully, or not",
        default="auto",
        choices=("auto", "on", "off"),
    ),
    Option(("--timings",), "say where the time went"),
    Option(("--json",), "print one JSON object about the run at the end"),
)


def parser() -> "Parser":
    """The options of ``pykvm boot``, for all that is more than plain."""
    from argparse import RawDescriptionHelpFormatter

    from pykvm.cli.boot.foreign import hint_for
    from pykvm.cli.parser import Parser

    made = Parser(
        prog="pykvm boot",
        description="Boot a guest, to a shell on this terminal or to run one command.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        hint_for=hint_for,
    )
    add_options(made, OPTIONS)
    return made


def help_asked_for(options: Options) -> str:
    """What is asked for instead of a run, if anything is."""
    if "help" in options.disk:
        from pykvm.cli.disk_keys import disk_help

        return disk_help()
    if options.trace == "help":
        from pykvm.cli.trace import trace_help

        return trace_help()
    return ""


def configuration(options: Options) -> MachineConfig:
    if options.guest is None and options.kernel is None:
        what = "--initrd needs a kernel" if options.initrd else "there is nothing to boot"
        raise UsageError(what, "try 'pykvm boot guest', or --kernel FILE")
    if options.command is not None:
        from pykvm.cli.boot.exec_session import check_command

        check_command(options.command, options.guest)
    size = None
    if options.command is not None:
        console = ConsoleMode.NONE
    elif os.isatty(STDIN):
        console = ConsoleMode.SHELL
        with suppress(OSError):
            size = os.get_terminal_size(STDIN)
    else:
        console = ConsoleMode.PIPE
    return MachineConfig(
        guest=options.guest,
        kernel=options.kernel,
        initrd=options.initrd,
        append=" ".join(options.append),
        **({} if options.memory is None else parse_memory(options.memory)),
        cpus=parse_count(options.cpus),
        cpu_affinity=frozenset()
        if options.cpu_affinity is None
        else parse_cpus(options.cpu_affinity),
        disks=_disks(options.disk) if options.disk else (),
        console=console,
        console_size=(size.lines, size.columns) if size and size.lines else None,
        # A shell's terminal needs it for its size.
        agent=console is not ConsoleMode.PIPE,
        trace=_trace(options.trace) if options.trace is not None else None,
    )


def _disks(texts: Sequence[str]) -> "list[DiskConfig]":
    from pykvm.cli.disk_keys import parse_disk

    return [parse_disk(text) for text in texts]


def _trace(text: str) -> "TraceOptions":
    from pykvm.cli.trace import parse_trace

    return parse_trace(text)
