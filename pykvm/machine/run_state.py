"""The states of a machine."""

from enum import Enum

from pykvm.machine.outcome import Outcome, OutcomeKind


class RunState(Enum):
    """The states of a machine, by QEMU's names."""

    PRELAUNCH = "prelaunch"
    """It has not been started."""
    RUNNING = "running"
    """The guest runs."""
    PAUSED = "paused"
    """Stopped by the user."""
    IO_ERROR = "io-error"
    """Stopped by an I/O error of a disk whose policy says so."""
    SHUTDOWN = "shutdown"
    """The run is over."""
    GUEST_PANICKED = "guest-panicked"
    """The run is over: the guest's kernel panicked."""
    INTERNAL_ERROR = "internal-error"
    """The run is over: pykvm could not continue."""

    @classmethod
    def after(cls, outcome: Outcome) -> "RunState":
        """The state of a machine whose run has ended with ``outcome``."""
        if outcome.kind is OutcomeKind.PANIC:
            return cls.GUEST_PANICKED
        return cls.INTERNAL_ERROR if outcome.kind is OutcomeKind.ERROR else cls.SHUTDOWN

    @property
    def over(self) -> bool:
        """The run has ended."""
        return self in (RunState.SHUTDOWN, RunState.GUEST_PANICKED, RunState.INTERNAL_ERROR)
