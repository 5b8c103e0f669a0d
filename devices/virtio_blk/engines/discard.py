"""Executes DISCARD and WRITE_ZEROES, by the host's own means or by writing zeros."""

import errno
import mmap
import os
from contextlib import nullcontext

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_DISCARD
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.direct import DirectIo
from pykvm.devices.virtio_blk.image.file import Image

PIECE = 1 << 20
"""Bytes of zeros in one write; between two writes, :meth:`RangeIo.stop` takes effect."""


class RangeIo:
    """Executes operations on ranges of an image. One thread uses it, except for :meth:`stop`."""

    def __init__(self, image: Image, direct: DirectIo | None) -> None:
        """``direct`` writes to an image with O_DIRECT; the caller closes it."""
        self._image = image
        self._direct = direct
        self._alone = image.edge_lock if image.edges else nullcontext()
        self._stopped = False
        self._zeros: memoryview | None = None

    def execute(self, operation: Operation) -> None:
        """Execute ``operation`` and set its results; ECANCELED after :meth:`stop`."""
        discard = operation.kind == VIRTIO_BLK_T_DISCARD
        operation.error = self._discard(operation) if discard else self._zero(operation)
        if operation.durable and not discard and not operation.error:
            operation.error = self._image.sync()

    def stop(self) -> None:
        """Write no more zeros. Any thread."""
        self._stopped = True

    def _discard(self, operation: Operation) -> int:
        error = self._image.allocation.discard(operation.offset, operation.length)
        operation.moved = 0 if error else operation.length
        return error

    def _zero(self, operation: Operation) -> int:
        offset, length, unmap = operation.offset, operation.length, operation.unmap
        # A write to another part of a block may be about to write the whole block back.
        with self._alone:
            error = self._image.allocation.zero(offset, length, unmap)
        if error == errno.EOPNOTSUPP:
            return self._fill(operation)
        operation.moved = 0 if error else length
        return error

    def _piece(self) -> memoryview:
        """PIECE zeros. OSError if the host has no memory for the mapping."""
        if self._zeros is None:
            # Nothing writes to it, so the host needs one page of memory for all of it.
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._zeros = memoryview(mmap.mmap(-1, PIECE, flags, mmap.PROT_READ))
        return self._zeros

    def _fill(self, operation: Operation) -> int:
        """Write zeros until the host takes no more; an errno, or 0."""
        try:
            zeros = self._piece()
        except OSError as error:
            return error.errno or errno.ENOMEM
        while operation.moved < operation.length:
            if self._stopped:
                return errno.ECANCELED
            at = operation.offset + operation.moved
            # Up to a multiple of PIECE, so that all pieces but the first and the last are aligned.
            piece = zeros[: min(PIECE - at % PIECE, operation.length - operation.moved)]
            try:
                if self._direct is not None:
                    done = self._direct.write(piece, at)
                else:
                    done = os.pwrite(self._image.fd, piece, at)
            except OSError as error:
                return error.errno or errno.EIO
            operation.moved += done
            if done < len(piece):
                break
        return 0
