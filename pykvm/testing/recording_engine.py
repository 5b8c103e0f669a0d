"""Records the operations of a disk's engine, at submission and completion::

    log = EngineLog()
    disk = DiskConfig(path, engine=log.wrap(SyncEngine))
    … run the machine …
    assert log.operations() == [("read", 0, 8, 8)]

The engine's interface is the right place to observe merging and ordering: it shows the
operations that the host gets, with any engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from pykvm.devices.virtio_blk import Engine, EngineFactory, Image
from pykvm.devices.virtio_blk.constants import (
    OPERATION_NAMES,
    SECTOR_SIZE,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.layers.wrapper import EngineWrapper
from pykvm.memory.ram import Ram


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """An operation at the moment of its submission or completion.

    ``number`` identifies the operation in both events, and rises in the order of
    submission. ``engine`` is the number of the engine: each activation makes one
    for each queue, and they are numbered in that order. ``kind`` is one of
    OPERATION_NAMES, such as ``"read"``. ``sector`` and ``sectors`` cover the
    sectors that it touches, even in part. ``members`` is the number of its requests,
    ``segments`` that of its segments. ``error`` (an errno or 0) and ``moved``
    (bytes) are results, and 0 at submission.
    """

    event: Literal["submitted", "completed"]
    number: int
    engine: int
    kind: str
    sector: int
    sectors: int
    members: int
    segments: int
    durable: bool
    error: int = 0
    moved: int = 0


class EngineLog:
    """The events at the engines of one or several disks: ``events``, the earliest first.

    Engines append from their threads. Read it when they are quiet.
    """

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        # In CPython, next() of a counter and append() are atomic.
        self._numbers = count()
        self._engines = count()

    def wrap(self, factory: EngineFactory) -> EngineFactory:
        """A factory like ``factory``, whose engines are recorded here."""

        def make(image: Image, ram: Ram) -> Engine:
            inner = factory(image, ram)
            return RecordingEngine(inner, self, next(self._engines))

        return make

    def operations(self) -> list[tuple[str, int, int, int]]:
        """(kind, sector, sectors, members) of each submission."""
        return [
            (event.kind, event.sector, event.sectors, event.members)
            for event in self.events
            if event.event == "submitted"
        ]

    def submitted(self, operation: Operation, engine: int) -> int:
        """Record that ``operation`` is about to be submitted; return its number."""
        number = next(self._numbers)
        self._append("submitted", number, engine, operation)
        return number

    def completed(self, operation: Operation, engine: int, number: int) -> None:
        """Record that ``operation`` is done."""
        self._append("completed", number, engine, operation)

    def _append(
        self,
        event: Literal["submitted", "completed"],
        number: int,
        engine: int,
        operation: Operation,
    ) -> None:
        first = operation.offset // SECTOR_SIZE
        end = -(-(operation.offset + operation.length) // SECTOR_SIZE)
        self.events.append(
            EngineEvent(
                event,
                number,
                engine,
                OPERATION_NAMES[operation.kind],
                first,
                end - first,
                len(operation.members),
                operation.last - operation.first,
                operation.durable,
                operation.error,
                operation.moved,
            )
        )


class RecordingEngine(EngineWrapper):
    """Records each operation that it passes on to ``inner`` in an :class:`EngineLog`."""

    def __init__(self, inner: Engine, log: EngineLog, number: int) -> None:
        super().__init__(inner)
        self._log = log
        self._number = number
        self._lent: dict[Operation, int] = {}

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        for operation in operations:
            self._lent[operation] = self._log.submitted(operation, self._number)
        super().submit(operations)

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        done = super().completions()
        for operation in done:
            self._log.completed(operation, self._number, self._lent.pop(operation))
        return done
