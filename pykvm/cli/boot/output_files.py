"""The files that a run of ``pykvm boot`` writes. Imported only if there may be any."""

from contextlib import ExitStack

from pykvm.cli.quick_options import Options
from pykvm.cli.say import STDERR, STDIN, STDOUT
from pykvm.machine.config import MachineConfig
from pykvm.machine.inputs import inputs_of
from pykvm.outputs import Output, Outputs


def open_output_files(
    stack: ExitStack, config: MachineConfig, options: Options
) -> dict[str, Output]:
    """The open output files by option; UsageError. The trace is checked but not opened here."""
    wanted = {
        "--console-log": options.console_log,
        "--stats": None if options.stats == "-" else options.stats,
    }
    wanted = {option: path for option, path in wanted.items() if path}
    outputs = stack.enter_context(Outputs([STDIN, *inputs_of(config)]))
    outputs.check_streams()
    if options.json:
        outputs.take_stream(STDOUT, "--json")
    if options.console_log and options.command is None:
        # A log that shares the console's file would mix with it, letter by letter.
        console = Outputs([])
        console.take_stream(STDERR if options.json else STDOUT, "the console")
        console.check(options.console_log, "--console-log")
    opened = {option: outputs.open(path, option) for option, path in wanted.items()}
    trace_path = getattr(config.trace, "path", None)  # a trace in memory has none
    if trace_path:
        outputs.check(trace_path, "--trace")
    return opened
