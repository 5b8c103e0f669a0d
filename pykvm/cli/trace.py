"""``--trace`` of ``pykvm boot``, and ``pykvm trace``, which reads what it wrote."""

from pathlib import Path

from pykvm.cli.values import split_options
from pykvm.errors import UsageError
from pykvm.trace import TraceFormat, TraceOptions
from pykvm.trace.events import EVENTS, matching


def trace_help() -> str:
    """What ``--trace help`` prints."""
    lines = [
        "--trace FILE[,format=jsonl|chrome][,events=PATTERN[:PATTERN...]]: write what disks do.",
        "  format=jsonl   a JSON object on each line, for 'pykvm trace' (the default)",
        "  format=chrome  for ui.perfetto.dev and chrome://tracing",
        "  events=        only events with such names, like 'events=*.error:*.merge':",
        *(f"    {name:<21} {meaning}" for name, meaning in EVENTS.items()),
        "A comma in the path is written twice; a file named help is ./help.",
    ]
    return "\n".join(lines) + "\n"


def parse_trace(text: str) -> TraceOptions:
    """What ``--trace`` says; UsageError."""
    path, *options = split_options(text)
    if not path:
        raise UsageError("--trace needs a path", "write it like --trace boot.jsonl")
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
            f"the format of a trace cannot be '{form}'", "use jsonl or chrome"
        ) from None
    matching(made.events)
    return made
