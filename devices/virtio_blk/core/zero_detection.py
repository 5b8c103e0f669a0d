"""``detect-zeroes``: writes whose data are zeros become operations without data. Pure."""

from collections.abc import Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.memory.ram import Ram

PIECE: Final = 1 << 16
"""Bytes that are looked at together; after the first piece that is not zeros no more are."""


class ZeroDetector:
    """Looks at the data of operations that are about to start.

    A driver that changes its data meanwhile gets what it wrote at one moment or
    another, as with any write.
    """

    def __init__(self, ram: Ram, unmap: bool) -> None:
        """``unmap``: what writes zeroes may free space."""
        self._memory = ram.bytes
        self._unmap = unmap

    def look(self, operations: Sequence[Operation]) -> None:
        """Make each write of nothing but zeros a VIRTIO_BLK_T_WRITE_ZEROES."""
        for operation in operations:
            if operation.kind == VIRTIO_BLK_T_OUT and self._only_zeros(operation):
                operation.kind = VIRTIO_BLK_T_WRITE_ZEROES
                operation.unmap = self._unmap

    def _only_zeros(self, operation: Operation) -> bool:
        for view in operation.views(self._memory):
            for start in range(0, len(view), PIECE):
                piece = bytes(view[start : start + PIECE])
                if piece != bytes(len(piece)):
                    return False
        return True
