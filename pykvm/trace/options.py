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
    """Write the events whose names match ``events`` to the regular file ``path``.

    ``events`` are patterns as for file names, joined by ``:``.
    """

    path: Path
    format: TraceFormat = TraceFormat.JSONL
    events: str = "*"

    def __post_init__(self) -> None:
        adapt(self, _FORMS)


_FORMS: "Final[dict[str, Form]]" = {"path": path, "format": member(TraceFormat), "events": text}
