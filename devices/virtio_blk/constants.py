"""Constants of the block device (virtio 1.2 §5.2), spelled as there.

Feature constants are masks, as in :mod:`pykvm.virtio.constants`.
"""

from typing import Final

SECTOR_SIZE = 512
"""The unit of ``sector`` and ``capacity``, for every block size (§5.2.4)."""
SECTOR_SHIFT = 9

# Feature bits (§5.2.3).
VIRTIO_BLK_F_SIZE_MAX = 1 << 1
VIRTIO_BLK_F_SEG_MAX = 1 << 2
VIRTIO_BLK_F_GEOMETRY = 1 << 4
VIRTIO_BLK_F_RO = 1 << 5
VIRTIO_BLK_F_BLK_SIZE = 1 << 6
VIRTIO_BLK_F_FLUSH = 1 << 9
VIRTIO_BLK_F_TOPOLOGY = 1 << 10
VIRTIO_BLK_F_CONFIG_WCE = 1 << 11
VIRTIO_BLK_F_MQ = 1 << 12
VIRTIO_BLK_F_DISCARD = 1 << 13
VIRTIO_BLK_F_WRITE_ZEROES = 1 << 14
VIRTIO_BLK_F_LIFETIME = 1 << 15

# Request types (§5.2.6).
VIRTIO_BLK_T_IN = 0
VIRTIO_BLK_T_OUT = 1
VIRTIO_BLK_T_FLUSH = 4
VIRTIO_BLK_T_GET_ID = 8
VIRTIO_BLK_T_GET_LIFETIME = 10
VIRTIO_BLK_T_DISCARD = 11
VIRTIO_BLK_T_WRITE_ZEROES = 13

OPERATION_NAMES: Final = {
    VIRTIO_BLK_T_IN: "read",
    VIRTIO_BLK_T_OUT: "write",
    VIRTIO_BLK_T_FLUSH: "flush",
    VIRTIO_BLK_T_DISCARD: "discard",
    VIRTIO_BLK_T_WRITE_ZEROES: "write-zeroes",
}
"""The operations that an engine executes, named for people."""

# Status byte (§5.2.6).
VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2

VIRTIO_BLK_ID_BYTES = 20
"""The size of the GET_ID answer (§5.2.6)."""

HEADER_SIZE = 16
"""Bytes of type, reserved and sector: the device-readable start of every request."""

VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1
"""The bit in the flags of a range that allows to free its space (§5.2.6)."""
