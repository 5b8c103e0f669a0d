"""How a run ended, and which evidence counts.

The guest's own word comes first: a status at the exit port wins over all
else, then pvpanic. Only a reset, a halt or a triple fault is looked at twice:
after a panic it is a PANIC. Kernels without a pvpanic driver say so by a line
on the console, which :class:`ConsoleWatch` keeps; it counts only then.
"""

import signal
from enum import Enum, auto

from pykvm.errors import guest_text
from pykvm.lean.records import record

PANIC_TEXT = b"Kernel panic - not syncing"
"""What Linux prints first when it panics (kernel/panic.c)."""
PANIC_END = b"---[ end "
"""What stands before the same text at the end of the panic's report."""
REBOOT_TEXT = b"reboot: "
"""Starts what Linux prints on an orderly restart, halt or power-off (kernel/reboot.c)."""


class OutcomeKind(Enum):
    """The ways in which a run ends, each with its exit status."""

    POWER_OFF = auto()
    """The guest powered off, with a status of its own, 0 to 255."""
    RESET = auto()
    """The guest asked for a reset: 0."""
    HALTED = auto()
    """Every vCPU is halted with interrupts off, for ever: 0."""
    PANIC = auto()
    """The guest's kernel panicked: 126."""
    TRIPLE_FAULT = auto()
    """A vCPU shut down, which is no way to ask for a reset here: 126."""
    TIMEOUT = auto()
    """The time given to the run is over: 124."""
    SIGNALLED = auto()
    """The process got signal N: 128 + N."""
    QUIT = auto()
    """The user ended the run (Ctrl-a x, the monitor): 0, as in QEMU."""
    ERROR = auto()
    """pykvm cannot go on: 125."""


@record
class Outcome:
    """The end of a run."""

    kind: OutcomeKind
    """The event that ended it."""
    status: int
    """The exit status of the command line: 0 to 255."""
    reason: str = ""
    """A sentence for the user, without a full stop. Empty if there is nothing to say."""

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
        """The guest's kernel panicked; ``line`` is what it printed, if seen."""
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
        """pykvm got signal ``number``, or, for SIGPIPE, nobody reads its output any more."""
        known = number in signal.Signals.__members__.values()
        name = signal.Signals(number).name if known else f"signal {number}"
        why = ": the limit of CPU time (ulimit -t) is reached" if name == "SIGXCPU" else ""
        return cls(OutcomeKind.SIGNALLED, 128 + number, f"ended by {name}{why}")

    @classmethod
    def quit(cls, reason: str = "ended by its user") -> "Outcome":
        """The user asked to end; ``reason`` says how."""
        return cls(OutcomeKind.QUIT, 0, reason)

    @classmethod
    def error(cls, reason: str) -> "Outcome":
        """The VMM cannot go on."""
        return cls(OutcomeKind.ERROR, 125, reason)


_LOOKED_AT_TWICE = frozenset((OutcomeKind.RESET, OutcomeKind.HALTED, OutcomeKind.TRIPLE_FAULT))


def judge(
    event: Outcome, *, exit_status: int | None, panicked: bool, console_line: str | None
) -> Outcome:
    """How the run ended, given the event that ended it and what was known by then.

    ``exit_status`` is what the exit port was written with, if it was;
    ``panicked`` whether pvpanic reported PVPANIC_PANICKED; ``console_line``
    is :attr:`ConsoleWatch.panic_line`.
    """
    if exit_status is not None:
        return Outcome.power_off(exit_status)
    if event.kind is OutcomeKind.PANIC:
        return Outcome.panic(console_line or event.reason)
    if event.kind in _LOOKED_AT_TWICE and (panicked or console_line):
        return Outcome.panic(console_line or "")
    return event


class ConsoleWatch:
    """Keeps the line with which Linux announces a panic, out of the console's bytes.

    Bytes may come in pieces of any size. The memory used is bounded whatever
    the guest prints. A user may print the same words: when the kernel later
    announces an orderly restart or halt, it has not panicked, and the line is
    forgotten.
    """

    _LINE_MAX = 512
    _STEP = 256

    def __init__(self) -> None:
        self._line = bytearray()
        self._in_panic = False
        self._panic = b""

    def feed(self, data: bytes) -> None:
        """Look at more of the console's output."""
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
        """The announcement, from "Kernel panic" to the end of its line; None without one."""
        text = bytes(self._line) if self._in_panic else self._panic
        return guest_text(text) if text else None

    def _extend(self, piece: bytes) -> None:
        """Take more of the present line. Once it is a panic's, it begins with PANIC_TEXT."""
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
        # What may still become one of the texts has to stay.
        del line[: -len(PANIC_END + PANIC_TEXT)]

    def _look_for_reboot(self, end: int) -> None:
        if self._line.find(REBOOT_TEXT, 0, end) >= 0:
            self._panic = b""
