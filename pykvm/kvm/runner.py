"""A thread that runs a vCPU, and that others can stop or pause at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pykvm.kvm.exits import Exit
from pykvm.kvm.vcpu import Vcpu

Handler = Callable[[Exit], object | None]
"""Handles one exit in the vCPU's thread. None: go on. Anything else ends the
thread and becomes its ``outcome``. Never sees Interrupted."""


class VcpuThread:
    """Runs one vCPU in a thread of its own; does not own the vCPU.

    The thread takes exits from KVM_RUN to ``handle`` until that returns
    something, raises, or :meth:`stop` is called; then ``on_end`` is called in
    the same thread, with this object, and ``outcome`` and ``error`` say how it
    went. :meth:`pause`, :meth:`resume` and :meth:`stop` are for any other
    thread; they take effect within KVM_RUN at once, after KVM has completed
    the access of the last exit.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        handle: Handler,
        on_end: "Callable[[VcpuThread], None] | None" = None,
    ) -> None:
        self.vcpu = vcpu
        self.outcome: object | None = None
        self.error: BaseException | None = None
        raise NotImplementedError

    def start(self) -> None:
        """Start running."""
        raise NotImplementedError

    def pause(self, timeout: float = 5.0) -> None:
        """Return once the thread is out of KVM_RUN and idle, or has ended; TimeoutError.

        Pauses nest: each needs its :meth:`resume`.
        """
        raise NotImplementedError

    def resume(self) -> None:
        """Undo one :meth:`pause`."""
        raise NotImplementedError

    @contextmanager
    def paused(self, timeout: float = 5.0) -> Iterator[None]:
        """Within it, the thread does not touch the vCPU and others may."""
        self.pause(timeout)
        try:
            yield
        finally:
            self.resume()

    def stop(self) -> None:
        """Have the thread end, at once, also while paused. Does not wait."""
        raise NotImplementedError

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread, ``on_end`` included; TimeoutError."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """Whether the vCPU will not be run any more."""
        raise NotImplementedError

    @property
    def exit_counts(self) -> dict[str, int]:
        """How many exits of each cause so far: ``{"IoExit": 7, "Interrupted": 1}``."""
        raise NotImplementedError
