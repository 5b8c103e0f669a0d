"""The interface to which a schedule reports each of its steps. Pure."""

from collections.abc import Sequence
from typing import Protocol

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.modes import ErrorAction


class Observer(Protocol):
    """A schedule calls these methods, in the thread that serves the queue."""

    def added(self, requests: Sequence[Request], operations: Sequence[Operation]) -> None:
        """``requests`` came off the ring, and ``operations`` were planned for them."""

    def submitted(self, operations: Sequence[Operation]) -> None:
        """The engine is about to get ``operations``."""

    def completed(self, operation: Operation) -> None:
        """The engine has completed ``operation``; the schedule has not evaluated it yet."""

    def succeeded(self, operation: Operation, successors: Sequence[Operation]) -> None:
        """``successors`` retry ``operation`` or continue it, for its members."""

    def failed(self, request: Request, action: ErrorAction) -> None:
        """The host could not execute ``request``; its policy chose ``action``."""

    def answered(self, requests: Sequence[Request], finished_ns: int) -> None:
        """The last operations of ``requests`` completed at ``finished_ns``."""

    def halted(self) -> None:
        """The queue starts nothing any more."""

    def resumed(self, requests: int) -> None:
        """The queue goes on, with this number of ``requests`` that the halt had kept."""
