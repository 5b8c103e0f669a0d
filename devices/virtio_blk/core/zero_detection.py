"""``detect-zeroes``: a write of zeros becomes an operation without data. Pure."""

from collections.abc import Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.memory.ram import Ram

PIECE: Final = 1 << 16
"""The bytes of one comparison; the first piece with another byte than zero ends the search."""


class ZeroDetector:
    """Examines the data of operations that are about to start.

    If a driver changes its data meanwhile, the disk gets the data of some moment
    in between, as with any write.
    """

    def __init__(self, ram: Ram, unmap: bool) -> None:
        """``unmap``: operations that write zeroes may free space."""
        self._memory = ram.bytes
        self._unmap = unmap

    def convert(self, operations: Sequence[Operation]) -> None:
        """Turn each write of only zeros into a VIRTIO_BLK_T_WRITE_ZEROES."""
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
