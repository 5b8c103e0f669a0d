"""What a user can choose for a trace."""

from enum import Enum
from pathlib import Path

from pykvm.forms import Form, adapt, member, path, text
from pykvm.lean.records import record
from pykvm.lean.typing_names import Final


class TraceFormat(Enum):
    """How a trace is written; docs/reference/trace.md."""

    JSONL = "jsonl"
    """JSON Lines: an object for each event. What ``pykvm trace`` reads."""
    CHROME = "chrome"
    """The array of Chrome's trace event format, for ui.perfetto.dev and chrome://tracing."""


@record
class TraceOptions:
    """A trace: a file to which the disks write what they do, step by step.

    UsageError for a value of the wrong kind. The Machine opens the file and raises UsageError
    if it cannot. docs/reference/trace.md has the events.
    """

    path: Path | str
    """A regular file. It is made, or emptied when the guest starts."""
    format: TraceFormat = TraceFormat.JSONL
    """How the events are written."""
    events: str = "*"
    """The names of the events to write: patterns as for file names, joined by ``:``."""

    def __post_init__(self) -> None:
        adapt(self, _FORMS)


_FORMS: "Final[dict[str, Form]]" = {"path": path, "format": member(TraceFormat), "events": text}
