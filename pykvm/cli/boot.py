"""``pykvm boot``: options to a machine, the machine to a terminal, its end to an exit status."""

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from pykvm.cli.main import Parser
from pykvm.cli.output import ConsoleRecorder, report_failure, run_report
from pykvm.cli.say import STDOUT, put, say
from pykvm.cli.session import CommandSession, ConsoleSession
from pykvm.cli.values import parse_count, parse_disk, parse_seconds, parse_size
from pykvm.errors import UsageError
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.timings import Timings
from pykvm.platform.agent import MAX_COMMAND
from pykvm.platform.outcome import Outcome

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EPILOG = """\
On a terminal: Ctrl-a x ends the run, Ctrl-a h shows help, Ctrl-a Ctrl-a sends one Ctrl-a.
Exit status: the guest's own; 2 usage, 77 no KVM, 124 timeout, 125 pykvm failed,
126 guest panic or triple fault, 128+N ended by signal N."""


def parser() -> argparse.ArgumentParser:
    """The options of ``pykvm boot``."""
    made = Parser(
        prog="pykvm boot",
        description="Boot a guest, to a shell on this terminal or to run one command.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("guest", nargs="?", metavar="GUEST", help="'guest' (bundled) or a folder with bundle.json")
    add("--kernel", metavar="FILE", type=Path, help="vmlinux, bzImage or ELF with a PVH note")
    add("--initrd", metavar="FILE", type=Path, help="initial RAM disk")
    add("--append", metavar="STR", action="append", default=[], help="add to the command line")
    add("-m", "--memory", metavar="SIZE", default="", help="guest memory, like 64M (the default)")
    add("--cpus", metavar="N", default="1", help="virtual CPUs (1)")
    add(
        "--disk",
        metavar="PATH[,readonly=on][,serial=STR]",
        action="append",
        default=[],
        help="virtio-blk disk: raw image or block device; may be repeated",
    )
    add("--exec", metavar="CMD", dest="command", help="run CMD in the bundled guest and end")
    add("--timeout", metavar="S", default="", help="end the run after S seconds (status 124)")
    add("--console-log", metavar="FILE", type=Path, help="also write the console to FILE")
    add("--stats", metavar="FILE", type=Path, help="write statistics as JSON at the end")
    add("--timings", action="store_true", help="say where the time went")
    add("--json", action="store_true", help="print one JSON object about the run at the end")
    return made


def run_boot(arguments: Sequence[str]) -> int:
    """Run ``pykvm boot`` and return the exit status."""
    timings = Timings()
    timings.mark("pykvm imported")
    options = parser().parse_args(arguments)
    config = _configuration(options)
    timeout = parse_seconds(options.timeout) if options.timeout else None
    with ExitStack() as stack:
        # Files are opened before the VM exists: a bad path costs nobody a boot.
        log = _open(stack, options.console_log, "--console-log")
        stats = _open(stack, options.stats, "--stats")
        session: ConsoleSession | CommandSession
        if options.command is None:
            session = ConsoleSession(stack, json=options.json)
            recorder = ConsoleRecorder(log, session.show)
        else:
            session = CommandSession(stack, options.command, json=options.json)
            recorder = ConsoleRecorder(log, None)
        machine = stack.enter_context(Machine(config, console=recorder, timings=timings))
        for notice in machine.notices:
            say(notice)
        stack.enter_context(_ended_by_signals(machine.finish))
        outcome = session.run(machine, timeout)
        if stats:
            stats.write(json.dumps(machine.statistics(), indent=2).encode() + b"\n")
    report_failure(outcome, recorder, console_shown=options.command is None)
    if options.timings:
        say(timings.table())
    if options.json:
        put(STDOUT, json.dumps(run_report(machine, outcome, session.output)) + "\n")
    return outcome.status


def _configuration(options: argparse.Namespace) -> MachineConfig:
    if options.guest is None and options.kernel is None:
        raise UsageError("there is nothing to boot", "try 'pykvm boot guest', or --kernel FILE")
    if options.command is not None:
        _check_command(options)
    size = None
    if options.command is not None:
        console = ConsoleMode.NONE
    elif os.isatty(0):
        console = ConsoleMode.SHELL
        size = os.get_terminal_size(0)
    else:
        console = ConsoleMode.PIPE
    return MachineConfig(
        guest=options.guest,
        kernel=options.kernel,
        initrd=options.initrd,
        append=" ".join(options.append),
        memory=parse_size(options.memory) if options.memory else 0,
        cpus=parse_count(options.cpus),
        disks=[parse_disk(text) for text in options.disk],
        console=console,
        console_size=(size.lines, size.columns) if size and size.lines else None,
        agent=options.command is not None,
    )


def _check_command(options: argparse.Namespace) -> None:
    if options.guest is None:
        raise UsageError(
            "--exec needs a guest with pykvm's agent in it", "use 'pykvm boot guest --exec CMD'"
        )
    if len(os.fsencode(options.command)) > MAX_COMMAND:
        raise UsageError(
            f"the command is longer than {MAX_COMMAND} bytes",
            "give the guest a script on standard input: --exec sh <script",
        )


def _open(stack: ExitStack, path: Path | None, option: str) -> IO[bytes] | None:
    """``path`` open for writing, unbuffered, or None."""
    if path is None:
        return None
    try:
        return stack.enter_context(open(path, "wb", buffering=0))
    except OSError as error:
        raise UsageError(
            f"{option} {path}: {error.strerror}", "give a file that can be written"
        ) from None


@contextmanager
def _ended_by_signals(finish: Callable[[Outcome], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the run, unless they were ignored when pykvm was started."""

    def end(number: int, frame: object) -> None:
        finish(Outcome.signalled(number))

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
