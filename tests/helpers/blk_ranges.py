"""Discards and write zeroes requests as a driver sends them."""

from struct import pack

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
)

DISCARD, ZEROES = VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES
UNMAP = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP

Segment = tuple[int, int, int]
"""sector, num_sectors, flags"""


def segments(*parts: tuple[int, int] | Segment) -> bytes:
    """The data of a request with these segments; without flags where there are two numbers."""
    return b"".join(pack("<QII", *(*part, 0)[:3]) for part in parts)
