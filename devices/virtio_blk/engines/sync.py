"""The engine ``sync``: a system call for each operation, in the thread that submits it."""

import errno
import time
from collections.abc import Sequence

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


class SyncEngine:
    """Executes each operation at submission, with preadv, pwritev, fdatasync and :class:`RangeIo`.

    On an image with O_DIRECT, :class:`DirectIo` moves the data.
    This engine is the best for files in the page cache: the system call is the
    whole cost there, and handing it to another thread more than doubles it.
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
        self._bytes = NO_BYTES  # no view of it may be left when memory is unmapped
        if self._direct is not None:
            self._direct.close()
