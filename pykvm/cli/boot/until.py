"""``--until``: the run ends when the guest's console has shown a text.

Imported only for runs with this option, and before the sandbox closes.
"""

import re

from pykvm.errors import UsageError, shown
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome, OutcomeKind

_LINE_MAX = 4096
"""Characters of a line that are searched, so that no guest takes the host's memory or time."""
_ENDS = (
    OutcomeKind.POWER_OFF,
    OutcomeKind.RESET,
    OutcomeKind.HALTED,
    OutcomeKind.PANIC,
    OutcomeKind.TRIPLE_FAULT,
    OutcomeKind.QUIT,
)
"""The ends of a run that the guest or the user caused, perhaps just after the text."""
_MORE = "\0"
"""Stands for the rest of a line that grows, so that ``$`` does not match there."""


class Until:
    """Watches the console's output, and ends the run when a line matches the pattern.

    A line is searched whenever it grows. ``$`` is the end of a complete line only.
    """

    def __init__(self, pattern: str, machine: Machine) -> None:
        """``pattern`` is a regular expression; UsageError."""
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"--until '{pattern}' is no regular expression: {error}",
                "write a backslash before a character such as ( or [ that stands for itself",
            ) from None
        self._machine = machine
        self._line = bytearray()
        self._found: Outcome | None = None

    def __call__(self, data: bytes) -> None:
        """Take the next piece of the console's output. vCPU threads call this."""
        if self._found:
            return
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._grow(piece)
            self._search(self._text())
            self._line.clear()
        self._grow(rest)
        if rest:
            self._search(self._text() + _MORE)

    def outcome(self, end: Outcome) -> Outcome:
        """The outcome of a run that has ended with ``end``."""
        if end.kind not in _ENDS:
            return end
        if self._found:
            return self._found
        if end.kind in (OutcomeKind.PANIC, OutcomeKind.TRIPLE_FAULT):
            return end
        return Outcome.error(f"the run ended before the console showed '{self._words}'")

    @property
    def _words(self) -> str:
        return shown(self._pattern.pattern)

    def _grow(self, piece: bytes) -> None:
        self._line += piece[: max(0, _LINE_MAX - len(self._line))]

    def _text(self) -> str:
        return self._line.decode("utf-8", "replace").rstrip("\r")

    def _search(self, text: str) -> None:
        if self._found is None and self._pattern.search(text):
            self._found = Outcome.quit(f"the console showed '{self._words}'")
            self._machine.finish(self._found)
