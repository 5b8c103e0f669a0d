"""The options of a trace."""

from enum import Enum
from pathlib import Path

from pykvm.forms import Form, adapt, member, path, text
from pykvm.lean.records import record
from pykvm.lean.typing_names import Final


class TraceFormat(Enum):
    """The formats of a trace's file; docs/reference/trace.md."""

    JSONL = "jsonl"
    """JSON Lines: an object for each event. ``pykvm trace`` reads this format."""
    CHROME = "chrome"
    """The array of Chrome's trace event format, for ui.perfetto.dev and chrome://tracing."""


@record
class TraceOptions:
    """A trace: the file that gets every step of the disks, as events.

    UsageError for a value of the wrong kind. The Machine opens the file, and raises UsageError
    if that fails. docs/reference/trace.md lists the events.
    """

    path: Path | str
    """A regular file. It is created if missing, and emptied when the guest starts."""
    format: TraceFormat = TraceFormat.JSONL
    """The format of the file."""
    events: str = "*"
    """The names of the events to write: patterns as for file names, joined by ``:``."""

    def __post_init__(self) -> None:
        adapt(self, _FORMS)


_FORMS: "Final[dict[str, Form]]" = {"path": path, "format": member(TraceFormat), "events": text}
