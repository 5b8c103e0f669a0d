"""The configuration space of a block device: struct virtio_blk_config (virtio 1.2 §5.2.4)."""

from struct import pack_into

CONFIG_SIZE = 72
"""All that virtio 1.2 has; the fields of SECURE_ERASE, at the end, stay 0."""

FIELDS: dict[str, tuple[int, str]] = {
    "capacity": (0, "<Q"),
    "size_max": (8, "<I"),
    "seg_max": (12, "<I"),
    "cylinders": (16, "<H"),
    "heads": (18, "B"),
    "sectors": (19, "B"),
    "blk_size": (20, "<I"),
    "physical_block_exp": (24, "B"),
    "alignment_offset": (25, "B"),
    "min_io_size": (26, "<H"),
    "opt_io_size": (28, "<I"),
    "writeback": (32, "B"),
    "num_queues": (34, "<H"),
    "max_discard_sectors": (36, "<I"),
    "max_discard_seg": (40, "<I"),
    "discard_sector_alignment": (44, "<I"),
    "max_write_zeroes_sectors": (48, "<I"),
    "max_write_zeroes_seg": (52, "<I"),
    "write_zeroes_may_unmap": (56, "B"),
}
"""Name → (offset, struct format) of the fields that this device fills in."""


class ConfigSpace:
    """Bytes that the driver reads. Fields of features that are not offered stay 0.

    ``bytes`` is replaced, never changed.
    """

    def __init__(self) -> None:
        self.bytes = bytes(CONFIG_SIZE)

    def set(self, name: str, value: int) -> None:
        """Store ``value`` in field ``name`` of :data:`FIELDS`."""
        offset, form = FIELDS[name]
        changed = bytearray(self.bytes)
        pack_into(form, changed, offset, value)
        self.bytes = bytes(changed)
