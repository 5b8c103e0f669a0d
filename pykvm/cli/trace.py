"""``--trace`` of ``pykvm boot``, and ``pykvm trace``, which reads the traces."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path
from pykvm.cli.say import emit, put
from pykvm.cli.values import split_options
from pykvm.errors import PykvmError, UsageError, reason_of
from pykvm.outputs import Outputs
from pykvm.trace import TraceFormat, TraceOptions
from pykvm.trace.events import EVENTS, matching
from pykvm.trace.plot import plot
from pykvm.trace.reader import LINE_MAX, Reader
from pykvm.trace.summary import report, summarize


def trace_help() -> str:
    """The text that ``--trace help`` prints."""
    lines = [
        "--trace FILE[,format=jsonl|chrome][,events=PATTERN[:PATTERN...]]",
        "Write each step of the disks to FILE.",
        "  format=jsonl   one JSON object on each line, for 'pykvm trace' (default)",
        "  format=chrome  for ui.perfetto.dev and chrome://tracing",
        "  events=        only events with matching names, such as events=*.error:*.merge",
        *(f"    {name:<21} {meaning}" for name, meaning in EVENTS.items()),
        "Write a comma in FILE twice, and a file named help as ./help.",
    ]
    return "\n".join(lines) + "\n"


def parse_trace(text: str) -> TraceOptions:
    """The value of ``--trace``; UsageError."""
    path, *options = split_options(text)
    if not path:
        raise UsageError("--trace needs a file", "write it like --trace boot.jsonl")
    given: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name not in ("format", "events"):
            raise UsageError(f"--trace has no option '{name}'", "use format= or events=")
        if not equals:
            raise UsageError(f"--trace option '{name}' needs a value", f"write {name}=…")
        if name in given:
            raise UsageError(f"--trace option '{name}' is given twice", "give it once")
        given[name] = value
    form = given.get("format", TraceFormat.JSONL.value)
    try:
        made = TraceOptions(Path(path), TraceFormat(form), given.get("events", "*"))
    except ValueError:
        raise UsageError(
            f"the format of a trace cannot be '{form}'", "use format=jsonl or format=chrome"
        ) from None
    matching(made.events)
    return made


def parser() -> argparse.ArgumentParser:
    """The options of ``pykvm trace``."""
    made = Parser(
        prog="pykvm trace",
        description="Summarize or draw a trace that 'pykvm boot --trace FILE' wrote.",
        allow_abbrev=False,
    )
    made.add_argument(
        "action",
        choices=("show", "plot"),
        help="show prints a summary; plot draws sectors over time as SVG",
    )
    made.add_argument("file", metavar="FILE", type=parse_path, help="the trace (format=jsonl)")
    made.add_argument(
        *("-o", "--output"),
        metavar="SVG",
        type=parse_path,
        help="write the drawing to this file (default: standard output)",
    )
    return made


def run_trace(arguments: Sequence[str]) -> int:
    """Run ``pykvm trace`` and return the exit status."""
    options = parser().parse_args(arguments)
    if options.action == "show" and options.output:
        raise UsageError(
            "--output works only with plot", "redirect standard output: show FILE >TEXT"
        )
    with Outputs([options.file]) as outputs:
        outputs.check_streams()
        output = outputs.open(options.output, "--output") if options.output else None
        if options.action == "show":
            emit(_read(options.file, lambda reader: report(summarize(reader))))
            return 0
        drawing = _read(options.file, plot)
        if output is None:
            emit(drawing)
            return 0
        try:
            output.begin()
            put(output.fd, drawing)
        except OSError as error:
            reason = reason_of(error)
            raise PykvmError(
                f"--output {options.output}: {reason}", "give a different file"
            ) from None
    return 0


def _read(path: Path, use: Callable[[Reader], str]) -> str:
    """The result of ``use`` on the trace at ``path``; UsageError, which names the path."""
    try:
        with path.open("rb") as file:
            return use(Reader(iter(partial(file.readline, LINE_MAX + 1), b"")))
    except OSError as error:
        reason = reason_of(error)
        hint = "use /dev/stdin for standard input" if str(path) == "-" else "check the path"
        raise UsageError(f"the trace {path} cannot be read: {reason}", hint) from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.hint) from None
