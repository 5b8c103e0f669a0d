"""``pykvm boot``: options to a machine, the machine to a terminal, its end to an exit status."""

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from pykvm.cli.boot.console_session import ConsoleSession, Session
from pykvm.cli.boot.output import ConsoleLog, ConsoleRecorder, say_reason
from pykvm.cli.paths import parse_path, path_text
from pykvm.cli.process import keep_time_to_tidy_up, signals_go_to
from pykvm.cli.quick_options import Option, Options, add_options, parse_options
from pykvm.cli.say import STDERR, STDIN, STDOUT, emit, say
from pykvm.cli.values import parse_count, parse_cpus, parse_memory, parse_seconds
from pykvm.errors import PykvmError, UsageError, reason_of, shown
from pykvm.lean.typing_names import TYPE_CHECKING, Final
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.timings import Timings

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.cli.boot.exec_session import CommandSession
    from pykvm.cli.boot.report import Report
    from pykvm.cli.boot.stop_reporter import StopReporter
    from pykvm.cli.parser import Parser
    from pykvm.machine.disks import DiskConfig
    from pykvm.monitor import MonitorSocket
    from pykvm.outputs import Output
    from pykvm.sandbox import Confinement
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


def run_boot(arguments: Sequence[str], own_process: bool = False) -> int:
    """Run ``pykvm boot`` and return the exit status. See ``main``."""
    timings = Timings()
    timings.mark("pykvm imported")
    options = parse_options(OPTIONS, arguments, parser)
    if text := _help(options):
        emit(text)
        return 0
    config = _configuration(options)
    timeout = parse_seconds(options.timeout) if options.timeout is not None else None
    failure: PykvmError | None = None
    with ExitStack() as stack:
        # Files are opened before the VM exists: a bad path costs nobody a boot.
        outputs = _open_outputs(stack, config, options)
        log = _console_log(stack, outputs, options.console_log)
        report = _report(outputs, options) if options.stats or options.json else None
        listener = _listen(stack, options.monitor) if options.monitor else None
        machine = stack.enter_context(Machine(config, timings=timings))
        stack.enter_context(signals_go_to(lambda number: machine.finish(Outcome.signalled(number))))
        for notice in machine.notices:
            say(shown(notice))
        session, recorder = _session(stack, machine, config, options, log)
        # Nothing else stops a guest.
        may_stop = machine.disks or session.has_keys or listener
        reporter = _reporter(machine, session, options) if may_stop else None
        confinement = _confine(options, own_process)
        timings.mark("confined")
        _begin(outputs, machine)
        if reporter:
            stack.callback(machine.listen(reporter))
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
        say_reason(outcome, on_terminal=session.has_keys and os.isatty(STDERR))
    if options.command is not None and outcome.kind in _TAIL_HELPS:
        recorder.say_tail()
    if log and log.problem:
        say(shown(log.problem))
    if machine.trace and machine.trace.problem:
        say(shown(machine.trace.problem))
    if options.timings:
        _say_timings(timings, machine, confinement)
    if report:
        sandbox = confinement.parts if confinement else None
        report.print_json(machine, outcome, session.output, sandbox)
    if failure is not None:
        raise failure
    return outcome.status


def _help(options: Options) -> str:
    """What is asked for instead of a run, if anything is."""
    if "help" in options.disk:
        from pykvm.cli.disk_keys import disk_help

        return disk_help()
    if options.trace == "help":
        from pykvm.cli.trace import trace_help

        return trace_help()
    return ""


def _open_outputs(stack: ExitStack, config: MachineConfig, options: Options) -> "dict[str, Output]":
    """The files that are to be written, by option; UsageError. Not the trace, which is checked."""
    wanted = {
        "--console-log": options.console_log,
        "--stats": None if options.stats == "-" else options.stats,
    }
    wanted = {option: path for option, path in wanted.items() if path}
    if not wanted and not config.trace and not _is_file(STDOUT) and not _is_file(STDERR):
        return {}
    # Most runs write no files.
    from pykvm.machine.inputs import inputs_of
    from pykvm.outputs import Outputs

    outputs = stack.enter_context(Outputs([STDIN, *inputs_of(config)]))
    outputs.check_streams()
    if options.json:
        outputs.take_stream(STDOUT, "--json")
    if options.console_log and options.command is None:
        # Which would get everything twice, letter by letter.
        console = Outputs([])
        console.take_stream(STDERR if options.json else STDOUT, "the console")
        console.check(options.console_log, "--console-log")
    opened = {option: outputs.open(path, option) for option, path in wanted.items()}
    if config.trace:
        outputs.check(config.trace.path, "--trace")
    return opened


def _is_file(fd: int) -> bool:
    """Whether the stream ``fd`` goes to something that may be a disk's image."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _begin(outputs: "dict[str, Output]", machine: Machine) -> None:
    """Empty what will be written: nothing that could still fail would be of interest there."""
    for option, output in outputs.items():
        try:
            output.begin()
        except OSError as error:
            raise UsageError(f"{option}: {reason_of(error)}", "give another file") from None
    if machine.trace:
        machine.trace.begin()


def _confine(options: Options, own_process: bool) -> "Confinement | None":
    """Give up what nobody will need while the guest runs. No thread has been started yet."""
    if not own_process and options.sandbox == "on":
        raise UsageError("--sandbox=on confines only a process of pykvm's own", "run 'pykvm boot'")
    if own_process:
        keep_time_to_tidy_up()
    if not own_process or options.sandbox == "off":
        return None
    # Start-up time counts, and libraries that use this module are not confined.
    from pykvm.sandbox import confine

    return confine(socket=options.monitor, insist=options.sandbox == "on")


def _say_timings(timings: Timings, machine: Machine, confinement: "Confinement | None") -> None:
    say(timings.table())
    say(f"guest memory: {machine.memory.kind}")
    for disk in machine.disks:
        say(f"{disk.name}: its I/O is done by {disk.engine}")
    say(f"sandbox: {confinement or 'off'}")


def _session(
    stack: ExitStack,
    machine: Machine,
    config: MachineConfig,
    options: Options,
    log: ConsoleLog | None,
) -> tuple[Session, ConsoleRecorder]:
    """Connect ``machine`` with what ``options`` ask for."""
    session: Session
    sinks = [log.write] if log else []
    if options.command is None:
        session = console = ConsoleSession(
            stack,
            machine,
            bundled=options.guest is not None,
            size=config.console_size,
            json=options.json,
        )
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


# What few runs want is imported only for them: start-up time is a feature. It is imported before
# the guest runs, because later the sandbox does not let it.


def _command_session(stack: ExitStack, machine: Machine, options: Options) -> "CommandSession":
    from pykvm.cli.boot.exec_session import CommandSession

    return CommandSession(stack, machine, options.command, json=options.json)


def _console_log(
    stack: ExitStack, outputs: "dict[str, Output]", path: str | None
) -> ConsoleLog | None:
    if not path:
        return None
    return stack.enter_context(ConsoleLog(outputs["--console-log"], path))


def _report(outputs: "dict[str, Output]", options: Options) -> "Report":
    from pykvm.cli.boot.report import Report

    file = outputs.get("--stats")
    return Report(stats=options.stats, file=file, as_json=options.json)


def _reporter(machine: Machine, session: Session, options: Options) -> "StopReporter":
    from pykvm.cli.boot.stop_reporter import StopReporter

    ways = ["Ctrl-a c"] if session.has_keys else []
    if options.monitor:
        ways.append(f"'cont' on the monitor {shown(str(options.monitor))}")
    images = {disk.name: shown(str(disk.config.path)) for disk in machine.disks}
    rooms = {disk.name: disk.device.image.room for disk in machine.disks}

    def give_up(text: str) -> None:
        machine.finish(Outcome.error(text))

    return StopReporter(images, ways, session.say, rooms, give_up=give_up)


def _listen(stack: ExitStack, path: "Path") -> "MonitorSocket":
    from pykvm.monitor import MonitorSocket

    return stack.enter_context(MonitorSocket(path))


def _serve(stack: ExitStack, listener: "MonitorSocket", machine: Machine) -> None:
    from pykvm.monitor import Monitor

    stack.enter_context(Monitor(listener, machine))


def _configuration(options: Options) -> MachineConfig:
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
