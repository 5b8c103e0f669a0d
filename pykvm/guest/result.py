"""The result of a command that has run in a guest. Pure."""

from collections.abc import Sequence

from pykvm.errors import shown
from pykvm.lean.records import record

Command = str | bytes | Sequence[str | bytes]
"""A line for the guest's shell, or a program and its arguments."""

_MOST_SHOWN = 200


@record
class Result:
    """A command that has ended."""

    status: int
    """Its exit status; 128 + N if signal N ended it."""
    signal: int
    """The signal that ended it, or 0."""
    stdout: bytes
    """What it wrote to its standard output, and nobody has read before."""
    stderr: bytes
    """The same of its standard error."""
    seconds: float
    """The time from its start to its end, as the host's clock tells it."""
    command: Command
    """The command, as it was given."""

    @property
    def text(self) -> str:
        """``stdout`` as text, without the newlines at its end, as ``$(…)`` in a shell.

        Bytes that are not UTF-8 become U+FFFD.
        """
        return self.stdout.decode("utf-8", "replace").rstrip("\n")


def command_text(command: Command) -> str:
    """``command`` for a message, shortened if it is long."""
    if isinstance(command, str | bytes):
        return f"'{_text(command)}'"
    return f"'{' '.join(_text(part) for part in command)}'"


def _text(part: str | bytes) -> str:
    text = part if isinstance(part, str) else part.decode("utf-8", "replace")
    return shown(text, most=_MOST_SHOWN)
