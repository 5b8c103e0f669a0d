"""``pykvm boot``: connects a machine to the terminal, and turns its end into an exit status."""

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack

from pykvm.cli.boot.console_session import ConsoleSession, Session
from pykvm.cli.boot.options import OPTIONS, configuration, help_asked_for, parser
from pykvm.cli.boot.output import ConsoleLog, ConsoleRecorder, say_reason
from pykvm.cli.process import keep_time_to_tidy_up, signals_go_to
from pykvm.cli.quick_options import Options, parse_options
from pykvm.cli.say import STDERR, STDOUT, emit, say
from pykvm.cli.values import parse_seconds
from pykvm.errors import PykvmError, UsageError, reason_of, shown
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.timings import Timings

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.cli.boot.exec_session import CommandSession
    from pykvm.cli.boot.report import Report
    from pykvm.cli.boot.stop_reporter import StopReporter
    from pykvm.cli.boot.until import Until
    from pykvm.monitor import MonitorSocket
    from pykvm.outputs import Output
    from pykvm.sandbox import Confinement

_TAIL_HELPS = (
    OutcomeKind.PANIC,
    OutcomeKind.TRIPLE_FAULT,
    OutcomeKind.TIMEOUT,
    OutcomeKind.ERROR,
)
"""The ends of a run with a hidden console after which its last lines are shown."""


def run_boot(arguments: Sequence[str], own_process: bool = False) -> int:
    """Run ``pykvm boot`` and return the exit status. See ``main``."""
    timings = Timings()
    timings.mark("pykvm imported")
    options = parse_options(OPTIONS, arguments, parser)
    if text := help_asked_for(options):
        emit(text)
        return 0
    return run_options(options, configuration(options), timings, own_process)


def run_options(
    options: Options,
    config: MachineConfig,
    timings: Timings,
    own_process: bool,
    snapshot: str | None = None,
) -> int:
    """Run the machine of ``config``, as ``options`` say, and return the exit status.

    ``snapshot``: the folder of the snapshot that it starts from.
    """
    timeout = parse_seconds(options.timeout) if options.timeout is not None else None
    if not own_process and options.sandbox == "on":
        raise UsageError(
            "--sandbox=on would confine the calling program", "run 'pykvm boot' in its own process"
        )
    failure: PykvmError | None = None
    with ExitStack() as stack:
        # Files are opened before the VM exists, so that a bad path fails before the boot.
        save_in = _save_in(options.save_in) if options.save_in else None
        outputs = _open_outputs(stack, config, options)
        log = _console_log(stack, outputs, options.console_log)
        report = _report(outputs, options) if options.stats or options.json else None
        listener = _listen(stack, options.monitor) if options.monitor else None
        machine = stack.enter_context(
            Machine(config, timings=timings, snapshot=snapshot)
            if snapshot is not None
            else _machine(config, options, timings, timeout, own_process)
        )
        stack.enter_context(signals_go_to(lambda number: machine.finish(Outcome.signalled(number))))
        for notice in machine.notices:
            say(shown(notice))
        if save_in:
            _prepare_saving(machine)
        until = _until(options.until, machine)
        session, recorder = _session(stack, machine, config, options, log, save_in, until)
        # Only a disk's error, Ctrl-a s and the monitor stop a guest.
        may_stop = machine.disks or session.has_keys or listener
        reporter = _reporter(machine, session, options) if may_stop else None
        confinement = _confine(options, own_process, save_in)
        timings.mark("confined")
        _begin(outputs, machine)
        if reporter:
            stack.callback(machine.listen(reporter))
        if listener:
            _serve(stack, listener, machine, save_in, session)
        if snapshot is not None:
            # A disk's error may have stopped the guest that was saved: it tries again.
            machine.request_resume()
        try:
            outcome = session.run(timeout)
        except PykvmError as error:
            # After a failure, the statistics and the last lines matter most.
            failure, outcome = error, Outcome.error(str(error))
        outcome = until.outcome(outcome) if until else outcome
        if report:
            report.write(machine)
    if report:
        report.print_statistics(machine)
    if failure is None:
        say_reason(
            outcome,
            on_terminal=session.has_keys and os.isatty(STDERR),
            within_line=recorder.within_line and _console_meets_messages(options),
        )
    if options.command is not None and outcome.kind in _TAIL_HELPS:
        recorder.say_tail()
    _say_problems(log, machine)
    if options.timings:
        _say_timings(timings, machine, confinement)
    if report:
        sandbox = confinement.parts if confinement else None
        report.print_json(machine, outcome, session.output, sandbox)
    if failure is not None:
        raise failure
    return outcome.status


def _console_meets_messages(options: Options) -> bool:
    """True if the guest's console is shown where pykvm's own messages are."""
    if options.command is not None:
        return False
    try:
        return options.json or os.path.sameopenfile(STDOUT, STDERR)
    except OSError:
        return False


def _say_problems(log: ConsoleLog | None, machine: Machine) -> None:
    """Say which files are not complete."""
    for file in (log, machine.trace):
        if file and file.problem:
            say(shown(file.problem))


def _open_outputs(stack: ExitStack, config: MachineConfig, options: Options) -> "dict[str, Output]":
    """The files that this run writes, by option; UsageError."""
    if not (
        options.console_log or options.stats or config.trace or _is_file(STDOUT) or _is_file(STDERR)
    ):
        return {}
    from pykvm.cli.boot.output_files import open_output_files

    return open_output_files(stack, config, options)


def _is_file(fd: int) -> bool:
    """True if the stream ``fd`` goes to a file or block device, which may be a disk's image."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _begin(outputs: "dict[str, Output]", machine: Machine) -> None:
    """Empty the output files, as the last step before the guest runs: no later step can fail."""
    for option, output in outputs.items():
        try:
            output.begin()
        except OSError as error:
            raise UsageError(f"{option}: {reason_of(error)}", "give a different file") from None
    if machine.trace:
        machine.trace.begin()


def _confine(options: Options, own_process: bool, save_in: "Path | None") -> "Confinement | None":
    """Drop every privilege that the run does not need, before any thread is started."""
    if own_process:
        keep_time_to_tidy_up()
    if not own_process or options.sandbox == "off":
        return None
    # Imported only here because start-up time counts.
    from pykvm.sandbox import confine

    return confine(socket=options.monitor, snapshots=save_in, insist=options.sandbox == "on")


def _say_timings(timings: Timings, machine: Machine, confinement: "Confinement | None") -> None:
    say(timings.table())
    say(f"guest memory: {machine.memory.kind}")
    for disk in machine.disks:
        say(f"{disk.name}: I/O by {disk.engine}")
    say(f"sandbox: {confinement or 'off'}")


def _session(
    stack: ExitStack,
    machine: Machine,
    config: MachineConfig,
    options: Options,
    log: ConsoleLog | None,
    save_in: "Path | None",
    until: "Until | None",
) -> tuple[Session, ConsoleRecorder]:
    """Connect ``machine`` with the terminal or the command, as ``options`` say."""
    session: Session
    sinks = [log.write] if log else []
    if options.command is None:
        session = console = ConsoleSession(
            stack,
            machine,
            bundled=options.guest is not None,
            size=config.console_size,
            json=options.json,
            save_in=save_in,
        )
        sinks.append(console.show)
    else:
        session = _command_session(stack, machine, options)
    sinks += [until] if until else []
    machine.console = recorder = ConsoleRecorder(*sinks)

    def release() -> None:
        session.release()
        if log:
            log.release()

    machine.on_end = release
    return session, recorder


def _machine(
    config: MachineConfig,
    options: Options,
    timings: Timings,
    timeout: float | None,
    own_process: bool,
) -> Machine:
    """The machine of this run: it boots, or starts from a template or a snapshot."""
    if options.snapshot is None and (options.command is None or options.cold):
        return Machine(config, timings=timings)
    from pykvm.cli.boot.prepared import prepared_machine

    return prepared_machine(config, options, timings, timeout, own_process)


# These modules are imported only for the runs that need them, because start-up time counts. They
# are imported before the guest runs, because the sandbox forbids later imports.


def _command_session(stack: ExitStack, machine: Machine, options: Options) -> "CommandSession":
    from pykvm.cli.boot.exec_session import CommandSession

    return CommandSession(stack, machine, options.command, json=options.json)


def _until(pattern: str | None, machine: Machine) -> "Until | None":
    if pattern is None:
        return None
    from pykvm.cli.boot.until import Until

    return Until(pattern, machine)


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
    images = {disk.name: shown(disk.config.name) for disk in machine.disks}
    rooms = {disk.name: disk.device.image.room for disk in machine.disks}

    def give_up(text: str) -> None:
        machine.finish(Outcome.error(text))

    return StopReporter(images, ways, session.say, rooms, give_up=give_up)


def _save_in(path: str) -> "Path":
    from pykvm.cli.boot.saving import checked_folder

    return checked_folder(path)


def _prepare_saving(machine: Machine) -> None:
    from pykvm.cli.boot.saving import prepare

    prepare(machine)


def _listen(stack: ExitStack, path: "Path") -> "MonitorSocket":
    from pykvm.monitor import MonitorSocket

    return stack.enter_context(MonitorSocket(path))


def _serve(
    stack: ExitStack,
    listener: "MonitorSocket",
    machine: Machine,
    save_in: "Path | None",
    session: Session,
) -> None:
    from pykvm.monitor import Monitor

    stack.enter_context(Monitor(listener, machine, save_in, session.after_reset))
