"""The outcome of a run, and the evidence that decides it.

1. A status that the guest wrote to the exit port wins over all other evidence.
2. A panic that the guest reported through pvpanic comes next.
3. A reset, a halt or a triple fault counts as PANIC if the guest's kernel
   panicked before. A kernel without a pvpanic driver announces a panic by a
   line on the console. :class:`ConsoleWatch` keeps that line, and it counts
   only in this case.
4. Else the event that ended the run decides.
"""

import signal
from enum import Enum, auto

from pykvm.errors import guest_text
from pykvm.lean.records import record

PANIC_TEXT = b"Kernel panic - not syncing"
"""The beginning of the line with which Linux announces a panic (kernel/panic.c)."""
PANIC_END = b"---[ end "
"""The text before PANIC_TEXT at the end of the panic's report."""
REBOOT_TEXT = b"reboot: "
"""The beginning of Linux's line for an orderly restart, halt or power-off (kernel/reboot.c)."""


class OutcomeKind(Enum):
    """The ways in which a run ends, each with its exit status."""

    POWER_OFF = auto()
    """The guest powered off, with a status of its own, 0 to 255."""
    RESET = auto()
    """The guest asked for a reset: 0."""
    HALTED = auto()
    """Every vCPU is permanently halted, with interrupts off: 0."""
    PANIC = auto()
    """The guest's kernel panicked: 126."""
    TRIPLE_FAULT = auto()
    """A vCPU shut down. pykvm does not take that for a request to reset: 126."""
    TIMEOUT = auto()
    """The run took longer than its time limit: 124."""
    SIGNALLED = auto()
    """The process got signal N: 128 + N."""
    QUIT = auto()
    """The user ended the run (Ctrl-a x, the monitor): 0, as in QEMU."""
    ERROR = auto()
    """pykvm cannot continue: 125."""


@record
class Outcome:
    """The end of a run."""

    kind: OutcomeKind
    """The event that ended it."""
    status: int
    """The exit status of the command line: 0 to 255."""
    reason: str = ""
    """A sentence for the user, without a full stop; may be empty."""

    @classmethod
    def power_off(cls, status: int) -> "Outcome":
        """The guest powered off with ``status``, 0 to 255."""
        return cls(OutcomeKind.POWER_OFF, status & 0xFF)

    @classmethod
    def reset(cls, source: str = "") -> "Outcome":
        """The guest asked for a reset through ``source``, such as "i8042"."""
        return cls(OutcomeKind.RESET, 0, f"reset through {source}" if source else "")

    @classmethod
    def halted(cls) -> "Outcome":
        """Every vCPU is halted with interrupts off."""
        return cls(OutcomeKind.HALTED, 0)

    @classmethod
    def panic(cls, line: str = "") -> "Outcome":
        """The guest's kernel panicked; ``line`` is the line that it printed, if known."""
        return cls(OutcomeKind.PANIC, 126, line or "the guest's kernel panicked")

    @classmethod
    def triple_fault(cls, reason: str = "") -> "Outcome":
        """A vCPU shut down."""
        return cls(OutcomeKind.TRIPLE_FAULT, 126, reason or "the guest ended with a triple fault")

    @classmethod
    def timeout(cls, seconds: float) -> "Outcome":
        """The run took longer than ``seconds``."""
        return cls(OutcomeKind.TIMEOUT, 124, f"the run was ended after {seconds:g} seconds")

    @classmethod
    def signalled(cls, number: int) -> "Outcome":
        """pykvm got signal ``number``; SIGPIPE also if its output has no reader any more."""
        known = number in signal.Signals.__members__.values()
        name = signal.Signals(number).name if known else f"signal {number}"
        why = ": the limit of CPU time (ulimit -t) is reached" if name == "SIGXCPU" else ""
        return cls(OutcomeKind.SIGNALLED, 128 + number, f"ended by {name}{why}")

    @classmethod
    def quit(cls, reason: str = "ended by its user") -> "Outcome":
        """The user ended the run; ``reason`` says how."""
        return cls(OutcomeKind.QUIT, 0, reason)

    @classmethod
    def error(cls, reason: str) -> "Outcome":
        """pykvm cannot continue."""
        return cls(OutcomeKind.ERROR, 125, reason)


_MAY_BE_PANIC = frozenset((OutcomeKind.RESET, OutcomeKind.HALTED, OutcomeKind.TRIPLE_FAULT))


def judge(
    event: Outcome, *, exit_status: int | None, panicked: bool, console_line: str | None
) -> Outcome:
    """The outcome of a run that ``event`` ended, by the rules above.

    ``exit_status`` is the status that the guest wrote to the exit port, or
    None. ``panicked``: pvpanic reported PVPANIC_PANICKED. ``console_line`` is
    :attr:`ConsoleWatch.panic_line`.
    """
    if exit_status is not None:
        return Outcome.power_off(exit_status)
    if event.kind is OutcomeKind.PANIC:
        return Outcome.panic(console_line or event.reason)
    if event.kind in _MAY_BE_PANIC and (panicked or console_line):
        return Outcome.panic(console_line or "")
    return event


class ConsoleWatch:
    """Finds the line with which Linux announces a panic in the console's output.

    The output may come in pieces of any size. Memory use is bounded, whatever
    the guest prints. A program in the guest may print the same words. So if
    the kernel later announces an orderly restart or halt, it has not panicked,
    and the line is dropped.
    """

    _LINE_MAX = 512
    _STEP = 256

    def __init__(self) -> None:
        self._line = bytearray()
        self._in_panic = False
        self._panic = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece of the console's output."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._extend(piece)
            if self._in_panic:
                self._panic = bytes(self._line)
            self._in_panic = False
            self._line.clear()
        self._extend(rest)

    @property
    def panic_line(self) -> str | None:
        """The announcement, from "Kernel panic" to the end of its line; None if there is none."""
        text = bytes(self._line) if self._in_panic else self._panic
        return guest_text(text) if text else None

    def _extend(self, piece: bytes) -> None:
        """Add ``piece`` to the current line; a panic's line then begins with PANIC_TEXT."""
        for start in range(0, len(piece), self._STEP):
            if self._in_panic:
                self._line += piece[start : start + self._LINE_MAX - len(self._line)]
                return
            self._line += piece[start : start + self._STEP]
            self._search()
        if self._in_panic:
            del self._line[self._LINE_MAX :]

    def _search(self) -> None:
        line = self._line
        while (found := line.find(PANIC_TEXT)) >= 0:
            self._look_for_reboot(found)
            # The last line of a panic's report repeats the first one.
            if not line.endswith(PANIC_END, 0, found):
                self._in_panic = True
                del line[:found]
                return
            del line[: found + len(PANIC_TEXT)]
        self._look_for_reboot(len(line))
        # The end may be the beginning of one of the texts.
        del line[: -len(PANIC_END + PANIC_TEXT)]

    def _look_for_reboot(self, end: int) -> None:
        if self._line.find(REBOOT_TEXT, 0, end) >= 0:
            self._panic = b""
