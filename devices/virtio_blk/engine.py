"""Engines execute operations on an image. The contract, and the one that needs nothing.

The device owns the order (:func:`pykvm.devices.virtio_blk.plan.order`), an
engine only carries out what may run now.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.image import Image
from pykvm.devices.virtio_blk.plan import Operation
from pykvm.memory.ram import Ram

IOV_MAX = os.sysconf("SC_IOV_MAX")
"""The largest number of buffers that preadv and pwritev take."""


class Engine(Protocol):
    """Executes operations. Made for one activation of a device; one thread uses it.

    An operation is lent to the engine from :meth:`submit` until
    :meth:`completions` returns it, with ``error`` and ``finished_ns`` set. An
    engine never raises for what a file or a disk does: that is an ``error``.
    """

    @property
    def notifier(self) -> int:
        """An eventfd that is readable while completions are waiting.

        -1: never needed, everything is complete when :meth:`submit` returns.
        """
        ...

    @property
    def ordered(self) -> bool:
        """Each operation is done before the next one of its submissions starts."""
        ...

    def submit(self, operations: Sequence[Operation]) -> None:
        """Take all of ``operations``, whose order is the device's business unless ``ordered``."""
        ...

    def completions(self) -> Sequence[Operation]:
        """The operations that are done, each returned once, in any order. Never blocks.

        Clears ``notifier`` first.
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
    """Executes each operation at submission, with preadv, pwritev and fdatasync.

    The best choice for files in the page cache, where the system call is the
    whole cost and any hand-over to somebody else more than doubles it.
    """

    notifier = -1
    ordered = True

    def __init__(self, image: Image, ram: Ram) -> None:
        self._image = image
        self._fd = image.fd
        self._bytes = ram.bytes
        self._done: list[Operation] = []
        self._stopped = False

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        fd = self._fd
        memory = self._bytes
        preadv, pwritev = os.preadv, os.pwritev
        now = time.monotonic_ns
        for operation in operations:
            if self._stopped:
                operation.error = errno.ECANCELED
                continue
            kind = operation.kind
            if kind == VIRTIO_BLK_T_FLUSH:
                operation.error = self._image.sync()
                operation.finished_ns = now()
                continue
            assert kind in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT), "the parser knows more"
            transfer = preadv if kind == VIRTIO_BLK_T_IN else pwritev
            first = operation.first
            moved = 0
            try:
                # One segment moved by one call is nearly all there is.
                if operation.last - first == 1:
                    start = operation.offsets[first]
                    end = start + operation.length
                    moved = transfer(fd, (memory[start:end],), operation.offset)
                if moved != operation.length:
                    operation.error = self._rest(operation, transfer, moved)
            except OSError as error:
                operation.error = error.errno or errno.EIO
            if operation.durable and kind == VIRTIO_BLK_T_OUT and not operation.error:
                operation.error = self._image.sync()
            operation.finished_ns = now()
        self._done.extend(operations)

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        done = self._done
        self._done = []
        return done

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._stopped = True

    def close(self) -> None:
        """See :class:`Engine`."""
        assert not self._done, "completions were left behind"

    def _rest(self, operation: Operation, transfer: Callable[..., int], moved: int) -> int:
        """Go on after ``moved`` bytes until the operation is done; an errno, or 0.

        Short transfers are ordinary (a signal, a full filesystem, the kernel's
        limit of 0x7ffff000 bytes); one of 0 bytes is the end of the file,
        which somebody truncated, for the parser lets nothing past the end.
        """
        length = operation.length
        while moved < length:
            views = self._views(operation, moved)
            try:
                count = transfer(self._fd, views, operation.offset + moved)
            finally:
                for view in views:
                    view.release()
            if count == 0:
                return errno.EIO
            moved += count
            if self._stopped and moved < length:
                return errno.ECANCELED
        return 0

    def _views(self, operation: Operation, skip: int) -> list[memoryview]:
        """The data of ``operation`` after ``skip`` bytes, as at most IOV_MAX views."""
        views: list[memoryview] = []
        offsets, lengths = operation.offsets, operation.lengths
        for index in range(operation.first, operation.last):
            length = lengths[index]
            if skip >= length:
                skip -= length
                continue
            start = offsets[index]
            views.append(self._bytes[start + skip : start + length])
            skip = 0
            if len(views) == IOV_MAX:
                break
        return views
