"""What a run leaves behind for people: the console's log and tail, and the failure."""

import signal
from collections.abc import Callable
from contextlib import ExitStack

from pykvm.cli.boot.streams import OutputWriter
from pykvm.cli.say import say
from pykvm.errors import reason_of, shown
from pykvm.lean.typing_names import TYPE_CHECKING, Self
from pykvm.machine.outcome import PANIC_TEXT, Outcome, OutcomeKind

if TYPE_CHECKING:
    from pykvm.outputs import Output

TAIL_BYTES = 16 << 10
TAIL_LINES = 20
CRASH_LINES = 100
"""An oops and the panic that follows it, at most."""
CRASH_TEXTS = ("BUG: ", "[#1]", PANIC_TEXT.decode())
"""What Linux says first of a crash: show_fault_oops, __die_header (arch/x86) and panic()."""
_QUIET = (OutcomeKind.POWER_OFF, OutcomeKind.RESET, OutcomeKind.HALTED)
_FROM_OUTSIDE = (OutcomeKind.QUIT, OutcomeKind.TIMEOUT, OutcomeKind.SIGNALLED)
"""Ends that find the guest's cursor anywhere."""


class ConsoleLog:
    """The file of ``--console-log``: a context that owns no more than what writes it.

    A log that cannot be written is no reason to end a guest's run: it ends
    there, and :attr:`problem` says so, to be said when the run is over.
    """

    def __init__(self, output: "Output", path: str) -> None:
        """``path`` is for messages."""
        self.problem = ""
        self._path = path
        self._owned = ExitStack()
        writer = self._owned.enter_context(OutputWriter(output.fd, self._failed))
        self.write: Callable[[bytes], None] = writer.write
        self.release: Callable[[], None] = writer.release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def _failed(self, error: OSError) -> None:
        self.problem = f"the console log {self._path} is not complete: {reason_of(error)}"


class ConsoleRecorder:
    """Takes the guest's console to some sinks, and keeps its last lines."""

    def __init__(self, *sinks: Callable[[bytes], None]) -> None:
        self._sinks = sinks
        self._tail = bytearray()

    def __call__(self, data: bytes) -> None:
        """Record ``data``; called from vCPU threads."""
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        for sink in self._sinks:
            sink(data)

    def say_tail(self) -> None:
        """Show the last lines that the guest printed, if there are any.

        They begin no later than what its kernel said of a crash: the message, the
        registers and the call trace.
        """
        lines = _last(self._tail.decode("utf-8", "replace").splitlines())
        if lines:
            text = "\n".join(f"  | {line}" for line in lines)
            say(f"the guest's console ended with:\n{text}")


def _last(lines: list[str]) -> list[str]:
    lines = lines[-CRASH_LINES:]
    for index in range(len(lines) - TAIL_LINES):
        if any(text in lines[index] for text in CRASH_TEXTS):
            return lines[index:]
    return lines[-TAIL_LINES:]


def say_reason(outcome: Outcome, on_terminal: bool = False) -> None:
    """Say why a run ended, unless it ended as runs should. ``on_terminal``: the console was there.

    A reader of our output that had enough (SIGPIPE) is no failure either.
    """
    if outcome.kind not in _QUIET and outcome.status != 128 + signal.SIGPIPE:
        say(shown(outcome.reason), fresh=on_terminal and outcome.kind in _FROM_OUTSIDE)
