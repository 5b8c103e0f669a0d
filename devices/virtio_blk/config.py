"""The configuration space of a block device: struct virtio_blk_config (virtio 1.2 §5.2.4)."""

from struct import pack_into

CONFIG_SIZE = 60
"""Up to and with write_zeroes_may_unmap and its padding; nothing behind it is offered."""

FIELDS: dict[str, tuple[int, str]] = {
    "capacity": (0, "<Q"),
    "size_max": (8, "<I"),
    "seg_max": (12, "<I"),
    "blk_size": (20, "<I"),
    "writeback": (32, "B"),
    "num_queues": (34, "<H"),
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
