"""Engines execute operations on an image. The contract, and the one that needs nothing.

The device owns order, limits and second attempts (:mod:`pykvm.devices.virtio_blk.core.scheduler`);
an engine only carries out, once, what may run now.
"""

import errno
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.direct import DirectIo
from pykvm.devices.virtio_blk.engines.discard import RangeIo
from pykvm.devices.virtio_blk.engines.transfer import transfer
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.hot.word_watch import Watch
from pykvm.hot.words import NO_BYTES, Bytes
from pykvm.memory.ram import Ram


class Engine(Protocol):
    """Executes operations. Made for one activation of a device; one thread uses it.

    An operation is lent to the engine from :meth:`submit` until
    :meth:`completions` returns it, with ``error``, ``moved`` and
    ``finished_ns`` set; both of the first two are 0 before. An engine never
    raises for what a file or a disk does: that is an ``error``. It need not
    finish what the host cut short: ``moved`` then says how far it came, 0 at
    the end of the file.
    """

    @property
    def notifier(self) -> int:
        """A descriptor that is readable while completions are waiting, such as an eventfd.

        -1: never needed, everything is complete when :meth:`submit` returns.
        """
        ...

    @property
    def immediate(self) -> bool:
        """:meth:`submit` executes one operation after another, and is over when all are.

        Such an engine is given one at a time, or a few reads, so that nothing starts
        once a write has failed in a way that stops the guest, and a stop waits for little.
        """
        ...

    def submit(self, operations: Sequence[Operation]) -> None:
        """Take all of ``operations``; they may be executed in any order, or side by side."""
        ...

    def completions(self) -> Sequence[Operation]:
        """The operations that are done, each returned once, in any order. Never blocks.

        Clears ``notifier`` first.
        """
        ...

    def watch(self, watch: Watch) -> bool:
        """Give ``watch`` the words that change when there are completions; False: ask ``notifier``.

        While operations execute, and for the next wait only.
        """
        ...

    def stop(self) -> None:
        """Start nothing any more. From any thread, for reset.

        What was submitted and not started completes with ECANCELED; without
        this, a guest could keep its reset waiting for any amount of I/O.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds (not the image). Nothing may be executing."""
        ...


EngineFactory = Callable[[Image, Ram], Engine]
"""Makes the engine of one activation, such as :class:`SyncEngine`."""


class SyncEngine:
    """Executes each operation at submission, with preadv, pwritev, fdatasync and :class:`RangeIo`.

    On an image with O_DIRECT through :class:`DirectIo`.
    The best choice for files in the page cache, where the system call is the
    whole cost and any hand-over to somebody else more than doubles it.
    """

    notifier: int
    immediate: bool
    _image: Image
    _fd: int
    _bytes: Bytes
    _done: list[Operation]
    _stopped: bool
    _direct: DirectIo | None
    _ranges: RangeIo

    def __init__(self, image: Image, ram: Ram) -> None:
        self.notifier = -1
        self.immediate = True
        self._image = image
        self._fd = image.fd
        self._bytes = ram.bytes
        self._done = []
        self._stopped = False
        self._direct = DirectIo(image, ram) if image.cache.direct else None
        self._ranges = RangeIo(image, self._direct)

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        operation: Operation
        now = time.monotonic_ns
        for operation in operations:
            kind = operation.kind
            if self._stopped:
                operation.error = errno.ECANCELED
            elif kind <= VIRTIO_BLK_T_OUT:
                self._move(operation, kind == VIRTIO_BLK_T_OUT)
            elif kind == VIRTIO_BLK_T_FLUSH:
                operation.error = self._image.sync()
            else:
                self._ranges.execute(operation)
            operation.finished_ns = now()
        self._done.extend(operations)

    def _move(self, operation: Operation, write: bool) -> None:
        if self._direct is None:
            moved = transfer(
                write,
                self._fd,
                self._bytes,
                operation.offsets,
                operation.lengths,
                operation.first,
                operation.last,
                operation.offset,
            )
            if moved >= 0:
                operation.moved = moved
            else:
                operation.error = -moved
        else:
            try:
                operation.moved = self._direct.move(operation)
            except OSError as error:
                operation.error = error.errno or errno.EIO
        if write and operation.durable and not operation.error:
            operation.error = self._image.sync()

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        done = self._done
        self._done = []
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`."""
        return False

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._stopped = True
        self._ranges.stop()

    def close(self) -> None:
        """See :class:`Engine`."""
        assert not self._done, "completions were left behind"
        self._bytes = NO_BYTES  # memory can be unmapped once nobody looks at it
        if self._direct is not None:
            self._direct.close()
