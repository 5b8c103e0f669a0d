"""The configuration space of a block device: struct virtio_blk_config (virtio 1.2 §5.2.4). Pure."""

from contextlib import AbstractContextManager
from struct import pack_into

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
)

CONFIG_SIZE = 72
"""The whole structure of virtio 1.2. The fields of SECURE_ERASE, at its end, stay 0."""

FIELDS: dict[str, tuple[int, str, int]] = {
    "capacity": (0, "<Q", 0),
    "size_max": (8, "<I", VIRTIO_BLK_F_SIZE_MAX),
    "seg_max": (12, "<I", VIRTIO_BLK_F_SEG_MAX),
    "cylinders": (16, "<H", VIRTIO_BLK_F_GEOMETRY),
    "heads": (18, "B", VIRTIO_BLK_F_GEOMETRY),
    "sectors": (19, "B", VIRTIO_BLK_F_GEOMETRY),
    "blk_size": (20, "<I", VIRTIO_BLK_F_BLK_SIZE),
    "physical_block_exp": (24, "B", VIRTIO_BLK_F_TOPOLOGY),
    "alignment_offset": (25, "B", VIRTIO_BLK_F_TOPOLOGY),
    "min_io_size": (26, "<H", VIRTIO_BLK_F_TOPOLOGY),
    "opt_io_size": (28, "<I", VIRTIO_BLK_F_TOPOLOGY),
    "writeback": (32, "B", VIRTIO_BLK_F_CONFIG_WCE),
    "num_queues": (34, "<H", VIRTIO_BLK_F_MQ),
    "max_discard_sectors": (36, "<I", VIRTIO_BLK_F_DISCARD),
    "max_discard_seg": (40, "<I", VIRTIO_BLK_F_DISCARD),
    "discard_sector_alignment": (44, "<I", VIRTIO_BLK_F_DISCARD),
    "max_write_zeroes_sectors": (48, "<I", VIRTIO_BLK_F_WRITE_ZEROES),
    "max_write_zeroes_seg": (52, "<I", VIRTIO_BLK_F_WRITE_ZEROES),
    "write_zeroes_may_unmap": (56, "B", VIRTIO_BLK_F_WRITE_ZEROES),
}
"""Name → (offset, struct format, feature that the field belongs to). The device fills in these."""


class ConfigSpace:
    """The bytes that the driver reads. Fields of features that are not offered stay 0.

    ``bytes`` is replaced at each change, and never changed.
    """

    def __init__(self, offered: int, lock: AbstractContextManager[object]) -> None:
        """``lock`` is held during each change: several threads set fields."""
        self._offered = offered
        self._lock = lock
        self.bytes = bytes(CONFIG_SIZE)

    def set(self, name: str, value: int) -> None:
        """Store ``value`` in field ``name`` of :data:`FIELDS`, if its feature is offered."""
        offset, form, feature = FIELDS[name]
        if feature & ~self._offered:
            return
        with self._lock:
            changed = bytearray(self.bytes)
            pack_into(form, changed, offset, value)
            self.bytes = bytes(changed)
