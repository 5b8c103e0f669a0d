"""The contract of engines, which execute operations on an image.

The device owns order, limits and second attempts (:mod:`pykvm.devices.virtio_blk.core.scheduler`).
An engine executes each operation once; the operation may start at once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram


class Engine(Protocol):
    """Executes operations. Made for one activation of a device; one thread uses it.

    An operation is lent to the engine from :meth:`submit` until
    :meth:`completions` returns it. ``error`` and ``moved`` are 0 before; the
    engine sets both and ``finished_ns``. An engine never raises for a failure
    of a file or a disk: that failure is an ``error``. The engine need not
    continue an operation that the host cut short: ``moved`` then counts the
    bytes done, 0 at the end of the file.
    """

    @property
    def notifier(self) -> int:
        """A descriptor that is readable while completions are waiting, such as an eventfd.

        -1: never needed, because everything is complete when :meth:`submit` returns.
        """
        ...

    @property
    def immediate(self) -> bool:
        """True if :meth:`submit` executes one operation after the other, and returns after all.

        The device gives such an engine one operation at a time, or a few reads. So nothing
        starts after a write whose failure stops the guest, and a stop waits for little.
        """
        ...

    def submit(self, operations: Sequence[Operation]) -> None:
        """Take all of ``operations``; they may be executed in any order, or at the same time."""
        ...

    def completions(self) -> Sequence[Operation]:
        """The operations that are done, each returned once, in any order. Never blocks.

        Clears ``notifier`` first.
        """
        ...

    def watch(self, watch: Watch) -> bool:
        """Give ``watch`` the words that change when there are completions.

        Called while operations are in flight, for the next wait only. False: there are no such
        words, and only ``notifier`` tells.
        """
        ...

    def stop(self) -> None:
        """Start nothing any more. Called from any thread, for a reset.

        Operations that were submitted and not started complete with ECANCELED. Otherwise a
        guest could make its reset wait for any amount of I/O.
        """
        ...

    def close(self) -> None:
        """Release the engine's resources, but not the image. Nothing may be in flight."""
        ...


EngineFactory = Callable[[Image, Ram], Engine]
"""Makes the engine of one activation."""
