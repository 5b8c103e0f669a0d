"""The console's log, its last lines, and the reason why a run ended."""

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
"""Enough for an oops and the panic that follows it."""
CRASH_TEXTS = ("BUG: ", "[#1]", PANIC_TEXT.decode())
"""The first words of Linux on a crash: show_fault_oops, __die_header (arch/x86) and panic()."""
_QUIET = (OutcomeKind.POWER_OFF, OutcomeKind.RESET, OutcomeKind.HALTED)
_FROM_OUTSIDE = (OutcomeKind.QUIT, OutcomeKind.TIMEOUT, OutcomeKind.SIGNALLED)
"""Ends that come while the guest's cursor may be anywhere."""


class ConsoleLog:
    """The file of ``--console-log``: a context that owns the file's writer but not the file.

    If the log cannot be written, the run goes on without it. :attr:`problem` is then the message
    for the end of the run.
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
    """Passes the guest's console output to each sink, and keeps its last lines."""

    def __init__(self, *sinks: Callable[[bytes], None]) -> None:
        self._sinks = sinks
        self._tail = bytearray()

    def __call__(self, data: bytes) -> None:
        """Record ``data``. vCPU threads call this."""
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        for sink in self._sinks:
            sink(data)

    @property
    def within_line(self) -> bool:
        """The guest's last line has no end yet."""
        return bool(self._tail) and not self._tail.endswith(b"\n")

    def say_tail(self) -> None:
        """Show the last lines that the guest printed, if any.

        After a crash of its kernel, they include the kernel's message, registers and call trace.
        """
        lines = _last(self._tail.decode("utf-8", "replace").splitlines())
        if lines:
            text = "\n".join(f"  | {line}" for line in lines)
            say(f"the last lines of the guest's console:\n{text}")


def _last(lines: list[str]) -> list[str]:
    lines = lines[-CRASH_LINES:]
    for index in range(len(lines) - TAIL_LINES):
        if any(text in lines[index] for text in CRASH_TEXTS):
            return lines[index:]
    return lines[-TAIL_LINES:]


def say_reason(outcome: Outcome, on_terminal: bool = False, within_line: bool = False) -> None:
    """Say why a run ended, unless its end is a normal one.

    ``on_terminal``: the guest's console was on the terminal. ``within_line``: the same stream has
    a line of the guest's that has not ended. An end because the reader of pykvm's output went away
    (SIGPIPE) is normal too.
    """
    if outcome.kind not in _QUIET and outcome.status != 128 + signal.SIGPIPE:
        fresh = within_line or (on_terminal and outcome.kind in _FROM_OUTSIDE)
        say(shown(outcome.reason), fresh=fresh)
