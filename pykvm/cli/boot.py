"""``pykvm boot``: options to a machine, the machine to a terminal, its end to an exit status."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from pykvm.cli.disk_keys import disk_help, parse_disk
from pykvm.cli.output import ConsoleLog, ConsoleRecorder, say_reason, spare_inputs
from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path, path_text
from pykvm.cli.process import signals_go_to
from pykvm.cli.say import STDIN, emit, say
from pykvm.cli.session import ConsoleSession, Session
from pykvm.cli.stops import StopReporter
from pykvm.cli.values import parse_count, parse_cpus, parse_seconds, parse_size
from pykvm.errors import PykvmError, UsageError
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.timings import Timings
from pykvm.platform.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.cli.command import CommandSession
    from pykvm.cli.report import Report
    from pykvm.cli.sandbox import Confinement
    from pykvm.monitor import MonitorSocket
    from pykvm.trace import TraceOptions

_TAIL_HELPS = (
    OutcomeKind.PANIC,
    OutcomeKind.TRIPLE_FAULT,
    OutcomeKind.TIMEOUT,
    OutcomeKind.ERROR,
)
"""The ends of a run with a hidden console after which its last lines are shown."""
EPILOG = """\
On a terminal: Ctrl-a x ends the run, Ctrl-a h shows more keys, Ctrl-a Ctrl-a sends one Ctrl-a.
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
    add("--kernel", metavar="FILE", type=path_text, help="vmlinux, bzImage or ELF with a PVH note")
    add("--initrd", metavar="FILE", type=path_text, help="initial RAM disk")
    add("--append", metavar="STR", action="append", default=[], help="add to the command line")
    add("-m", "--memory", metavar="SIZE", default="", help="guest memory, like 64M (the default)")
    add("--cpus", metavar="N", default="1", help="virtual CPUs (1)")
    add("--cpu-affinity", metavar="CPUS", help="the host's CPUs that they run on, like 0,2-3 (any)")
    add(
        "--disk",
        metavar="PATH[,KEY=VALUE...]",
        action="append",
        default=[],
        help="virtio-blk disk: raw image or block device; may be repeated; 'help' lists the keys",
    )
    add("--exec", metavar="CMD", dest="command", help="run CMD in the bundled guest and end")
    add("--timeout", metavar="S", default="", help="end the guest after S seconds (status 124)")
    add("--console-log", metavar="FILE", type=parse_path, help="also write the console to FILE")
    add(
        "--stats",
        metavar="FILE",
        type=path_text,
        help="write statistics as JSON at the end; '-': print them",
    )
    add(
        "--monitor", metavar="PATH", type=parse_path, help="serve QMP on a UNIX socket made at PATH"
    )
    add(
        "--trace",
        metavar="FILE[,KEY=VALUE...]",
        default="",
        help="write what the disks do to FILE; 'help' tells of formats and events",
    )
    add(
        "--sandbox",
        choices=("auto", "on", "off"),
        default="auto",
        help="confine pykvm while the guest runs: as far as the host can (auto), fully, or not",
    )
    add("--timings", action="store_true", help="say where the time went")
    add("--json", action="store_true", help="print one JSON object about the run at the end")
    return made


def run_boot(arguments: Sequence[str], own_process: bool = False) -> int:
    """Run ``pykvm boot`` and return the exit status. See ``main``."""
    timings = Timings()
    timings.mark("pykvm imported")
    options = parser().parse_args(arguments)
    if text := _help(options):
        emit(text)
        return 0
    config = _configuration(options)
    timeout = parse_seconds(options.timeout) if options.timeout else None
    failure: PykvmError | None = None
    _spare_inputs(config, options)
    with ExitStack() as stack:
        # Files are opened before the VM exists: a bad path costs nobody a boot.
        log = stack.enter_context(ConsoleLog(options.console_log)) if options.console_log else None
        report = _report(stack, options) if options.stats or options.json else None
        listener = _listen(stack, options.monitor) if options.monitor else None
        machine = stack.enter_context(Machine(config, timings=timings))
        stack.enter_context(signals_go_to(lambda number: machine.finish(Outcome.signalled(number))))
        for notice in machine.notices:
            say(notice)
        confinement = _confine(options, own_process)
        timings.mark("confined")
        session, recorder = _session(stack, machine, options, log)
        stack.callback(machine.listen(_reporter(machine, session, options)))
        if listener:
            _serve(stack, listener, machine)
        try:
            outcome = session.run(timeout)
        except PykvmError as error:
            # What the guest did until then is of interest all the more.
            failure, outcome = error, Outcome.error(str(error))
        if report:
            report.write(machine)
    if report:
        report.print_statistics(machine)
    if failure is None:
        say_reason(outcome)
    if options.command is not None and outcome.kind in _TAIL_HELPS:
        recorder.say_tail()
    if log and log.problem:
        say(log.problem)
    if machine.trace and machine.trace.problem:
        say(machine.trace.problem)
    if options.timings:
        _say_timings(timings, machine, confinement)
    if report:
        sandbox = confinement.parts if confinement else None
        report.print_json(machine, outcome, session.output, sandbox)
    if failure is not None:
        raise failure
    return outcome.status


def _help(options: argparse.Namespace) -> str:
    """What is asked for instead of a run, if anything is."""
    if "help" in options.disk:
        return disk_help()
    if options.trace == "help":
        from pykvm.cli.trace import trace_help

        return trace_help()
    return ""


def _spare_inputs(config: MachineConfig, options: argparse.Namespace) -> None:
    """UsageError if what is to be written is a disk's image, a kernel, …"""
    spare_inputs(
        {
            "--console-log": options.console_log,
            "--stats": None if options.stats == "-" else options.stats,
            "--trace": config.trace.path if config.trace else None,
        },
        [*(disk.path for disk in config.disks), *filter(None, (options.kernel, options.initrd))],
    )


def _confine(options: argparse.Namespace, own_process: bool) -> "Confinement | None":
    """Give up what nobody will need while the guest runs. No thread has been started yet."""
    if not own_process and options.sandbox == "on":
        raise UsageError("--sandbox=on confines only a process of pykvm's own", "run 'pykvm boot'")
    if not own_process or options.sandbox == "off":
        return None
    # Start-up time counts, and libraries that use this module are not confined.
    from pykvm.cli.sandbox import confine

    return confine(socket=options.monitor, insist=options.sandbox == "on")


def _say_timings(timings: Timings, machine: Machine, confinement: "Confinement | None") -> None:
    say(timings.table())
    for disk in machine.disks:
        say(f"{disk.name}: its I/O is done by {disk.engine}")
    say(f"sandbox: {confinement or 'off'}")


def _session(
    stack: ExitStack, machine: Machine, options: argparse.Namespace, log: ConsoleLog | None
) -> tuple[Session, ConsoleRecorder]:
    """Connect ``machine`` with what ``options`` ask for."""
    session: Session
    sinks = [log.write] if log else []
    if options.command is None:
        session = console = ConsoleSession(stack, machine, json=options.json)
        sinks.append(console.show)
    else:
        session = _command_session(stack, machine, options)
    machine.console = recorder = ConsoleRecorder(*sinks)

    def release() -> None:
        session.release()
        if log:
            log.release()

    machine.on_end = release
    return session, recorder


def _reporter(machine: Machine, session: Session, options: argparse.Namespace) -> StopReporter:
    ways = ["Ctrl-a c"] if session.has_keys else []
    if options.monitor:
        ways.append(f"'cont' on the monitor {options.monitor}")
    images = {disk.name: str(disk.config.path) for disk in machine.disks}
    return StopReporter(images, ways, session.say)


# What few runs want is imported only for them: start-up time is a feature. It is imported before
# the guest runs, because later the sandbox does not let it.


def _command_session(
    stack: ExitStack, machine: Machine, options: argparse.Namespace
) -> "CommandSession":
    from pykvm.cli.command import CommandSession

    return CommandSession(stack, machine, options.command, json=options.json)


def _report(stack: ExitStack, options: argparse.Namespace) -> "Report":
    from pykvm.cli.report import Report

    return Report(stack, stats=options.stats, as_json=options.json)


def _listen(stack: ExitStack, path: "Path") -> "MonitorSocket":
    from pykvm.monitor import MonitorSocket

    return stack.enter_context(MonitorSocket(path))


def _serve(stack: ExitStack, listener: "MonitorSocket", machine: Machine) -> None:
    from pykvm.monitor import Monitor

    stack.enter_context(Monitor(listener, machine))


def _configuration(options: argparse.Namespace) -> MachineConfig:
    if options.guest is None and options.kernel is None:
        what = "--initrd needs a kernel" if options.initrd else "there is nothing to boot"
        raise UsageError(what, "try 'pykvm boot guest', or --kernel FILE")
    if options.command is not None:
        from pykvm.cli.command import check_command

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
        memory=parse_size(options.memory) if options.memory else 0,
        cpus=parse_count(options.cpus),
        cpu_affinity=frozenset()
        if options.cpu_affinity is None
        else parse_cpus(options.cpu_affinity),
        disks=[parse_disk(text) for text in options.disk],
        console=console,
        console_size=(size.lines, size.columns) if size and size.lines else None,
        agent=options.command is not None,
        trace=_trace(options.trace) if options.trace else None,
    )


def _trace(text: str) -> "TraceOptions":
    from pykvm.cli.trace import parse_trace

    return parse_trace(text)
