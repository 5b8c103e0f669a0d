"""The errors of a guest that runs: a failed command, a guest that died, a limit of time."""

from pykvm.errors import PykvmError, shown
from pykvm.guest.result import Result, command_text
from pykvm.machine.outcome import Outcome, OutcomeKind

_TAIL_LINES = 20
_TAIL = 4000
_WAYS = {
    OutcomeKind.POWER_OFF: "the guest powered off",
    OutcomeKind.RESET: "the guest was reset",
    OutcomeKind.HALTED: "the guest halted",
    OutcomeKind.QUIT: "the guest was closed",
}


class GuestError(PykvmError):
    """A call to a guest failed. The base of this family, which its str() shows with all details."""

    def __init__(self, message: str, hint: str = "", *details: tuple[str, str]) -> None:
        """``details``: titles and texts that follow the message."""
        super().__init__(message, hint)
        self._details = [(title, text) for title, text in details if text]

    def __str__(self) -> str:
        parts = [super().__str__()]
        parts += [f"--- {title} ---\n{text}" for title, text in self._details]
        return "\n".join(parts)


class CommandFailed(GuestError):
    """A command ended with a status other than 0. ``result`` has all about it."""

    def __init__(self, result: Result) -> None:
        self.result = result
        way = f"by signal {result.signal}" if result.signal else f"with status {result.status}"
        super().__init__(
            f"{command_text(result.command)} ended {way}",
            "",
            ("stdout, the end", tail(result.stdout)),
            ("stderr, the end", tail(result.stderr)),
        )


class GuestDied(GuestError):
    """The guest's run is over. ``outcome`` says how, and ``console`` is its console's end."""

    def __init__(self, outcome: Outcome, console: str, during: str = "") -> None:
        """``during``: the call that this ended, as part of a sentence."""
        self.outcome = outcome
        self.console = console
        way = _WAYS.get(outcome.kind, outcome.reason or outcome.kind.name)
        if outcome.kind is OutcomeKind.POWER_OFF:
            way = f"{way} with status {outcome.status}"
        message = f"{way}, during {during}" if during else f"the guest's run is over: {way}"
        super().__init__(message, "", ("console, the end", console))


class GuestTimeout(GuestError):
    """A guest has not done in time what a call waits for. ``console`` is its console's end."""

    def __init__(
        self, message: str, console: str, *details: tuple[str, str], hint: str = ""
    ) -> None:
        self.console = console
        super().__init__(message, hint, *details, ("console, the end", console))


def tail(data: bytes | bytearray) -> str:
    """The last lines of ``data``, printable."""
    return last_lines(data[-_TAIL:].decode("utf-8", "replace"))


def last_lines(text: str) -> str:
    """The last lines of ``text``, printable."""
    lines = text[-_TAIL:].replace("\r\n", "\n").rstrip().split("\n")
    return shown("\n".join(lines[-_TAIL_LINES:]), keep="\n\t")
