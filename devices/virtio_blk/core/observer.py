"""Who is told of each step that a schedule takes. Pure."""

from collections.abc import Sequence
from typing import Protocol

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.modes import ErrorAction


class Observer(Protocol):
    """What a schedule calls, in the thread that serves the queue."""

    def added(self, requests: Sequence[Request], operations: Sequence[Operation]) -> None:
        """``requests`` were taken off the ring, and made ``operations``."""

    def submitted(self, operations: Sequence[Operation]) -> None:
        """The engine is about to get ``operations``."""

    def completed(self, operation: Operation) -> None:
        """The engine is done with ``operation``; nothing has come of it yet."""

    def succeeded(self, operation: Operation, successors: Sequence[Operation]) -> None:
        """``successors`` are executed in place of ``operation``, or after it, for its members."""

    def failed(self, request: Request, action: ErrorAction) -> None:
        """The host could not carry out ``request``; ``action`` is what its policy says."""

    def answered(self, requests: Sequence[Request], finished_ns: int) -> None:
        """The last operations of ``requests`` were done at ``finished_ns``."""

    def halted(self) -> None:
        """Nothing starts any more."""

    def resumed(self, requests: int) -> None:
        """The queue goes on, with ``requests`` that were kept."""
