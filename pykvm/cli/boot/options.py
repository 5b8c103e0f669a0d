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


GUEST_OPTIONS: Final = (
    Option(("guest",), "'guest', the bundled one, or a folder with a bundle.json", "GUEST"),
    Option(
        ("--kernel",),
        "boot this kernel: vmlinux, bzImage or any ELF file with a PVH note",
        "FILE",
        parse=path_text,
    ),
    Option(("--initrd",), "give the kernel this initial RAM disk", "FILE", parse=path_text),
    Option(
        ("--append",),
        "add STR to the kernel command line; may be repeated",
        "STR",
        repeated=True,
    ),
    Option(
        ("-m", "--memory"),
        "guest memory, such as 1G (default: the guest's, or else 64M); shared=on keeps it in a "
        "memfd, thp=off does not ask the host for large pages",
        "SIZE[,KEY=VALUE...]",
    ),
    Option(("--cpus",), "number of virtual CPUs (default: 1)", "N"),
)
"""The options that describe the guest that boots."""

RUN_OPTIONS: Final = (
    Option(
        ("--cpu-affinity",),
        "host CPUs for the virtual CPUs, such as 0,2-3 (default: any)",
        "CPUS",
    ),
    Option(
        ("--disk",),
        "virtio-blk disk: a raw image or a block device; may be repeated; 'help' lists the keys",
        "PATH[,KEY=VALUE...]",
        repeated=True,
    ),
    Option(("--exec",), "run CMD in the bundled guest, then end the run", "CMD", dest="command"),
    Option(
        ("--save-in",),
        "let the running guest be saved in the folder DIR: Ctrl-a w, 'pykvm snapshot save'",
        "DIR",
        parse=path_text,
    ),
    Option(("--timeout",), "end the run after S seconds, with status 124", "S"),
    Option(
        ("--until",),
        "end the run with status 0 when a line of the guest's console matches this regular "
        "expression",
        "PATTERN",
    ),
    Option(
        ("--console-log",),
        "also write the guest's console output to FILE",
        "FILE",
        parse=path_text,
    ),
    Option(
        ("--stats",),
        "at the end, write statistics to FILE as JSON; '-' prints one line for each disk",
        "FILE",
        parse=path_text,
    ),
    Option(("--monitor",), "serve QMP on a new UNIX socket at PATH", "PATH", parse=parse_path),
    Option(
        ("--trace",),
        "write each step of the disks to FILE; 'help' lists the formats and events",
        "FILE[,KEY=VALUE...]",
    ),
    Option(
        ("--sandbox",),
        "confine pykvm while the guest runs: auto (default) as far as the host can, on "
        "completely or the run fails, off not at all",
        default="auto",
        choices=("auto", "on", "off"),
    ),
    Option(("--timings",), "print how long each step took"),
    Option(("--json",), "at the end, print one JSON object about the run"),
)
"""The options of a run, whatever guest it is of."""

OPTIONS: Final = (
    *GUEST_OPTIONS,
    Option(
        ("--snapshot",),
        "with --exec: start from the booted guest saved in DIR; the first run makes DIR",
        "DIR",
        parse=path_text,
    ),
    Option(("--cold",), "with --exec: boot the guest, instead of starting from its template"),
    *RUN_OPTIONS,
)


def parser() -> "Parser":
    """The argparse parser of ``pykvm boot``, for command lines that are not plain."""
    text = "Boot a guest with a shell on this terminal, or run one command in it."
    return boot_parser("pykvm boot", text, OPTIONS)


def boot_parser(program: str, description: str, table: "Sequence[Option]") -> "Parser":
    """The same for a command that runs a guest in a different way."""
    from argparse import RawDescriptionHelpFormatter

    from pykvm.cli.boot.foreign import hint_for
    from pykvm.cli.parser import Parser

    made = Parser(
        prog=program,
        description=description,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        hint_for=hint_for,
    )
    add_options(made, table)
    return made


def help_asked_for(options: Options) -> str:
    """The help on ``--disk`` or ``--trace``, if ``options`` ask for it instead of a run; or ""."""
    if "help" in options.disk:
        from pykvm.cli.disk_keys import disk_help

        return disk_help()
    if options.trace == "help":
        from pykvm.cli.trace import trace_help

        return trace_help()
    return ""


def configuration(options: Options) -> MachineConfig:
    if options.guest is None and options.kernel is None:
        problem = "--initrd needs a kernel" if options.initrd else "there is nothing to boot"
        raise UsageError(problem, "try 'pykvm boot guest', or --kernel FILE")
    if options.command is not None:
        from pykvm.cli.boot.exec_session import check_command

        check_command(options.command, options.guest)
        if options.until is not None:
            raise UsageError(
                "--until watches the console, which --exec hides", "give only one of them"
            )
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
        cpus=1 if options.cpus is None else parse_count(options.cpus),
        cpu_affinity=frozenset()
        if options.cpu_affinity is None
        else parse_cpus(options.cpu_affinity),
        disks=_disks(options.disk) if options.disk else (),
        console=console,
        console_size=(size.lines, size.columns) if size and size.lines else None,
        # The agent keeps the size of a shell's terminal up to date.
        agent=console is not ConsoleMode.PIPE,
        trace=_trace(options.trace) if options.trace is not None else None,
    )


def _disks(texts: Sequence[str]) -> "list[DiskConfig]":
    from pykvm.cli.disk_keys import parse_disk

    return [parse_disk(text) for text in texts]


def _trace(text: str) -> "TraceOptions":
    from pykvm.cli.trace import parse_trace

    return parse_trace(text)
