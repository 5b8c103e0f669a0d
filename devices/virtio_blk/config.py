"""The configuration space of a block device: struct virtio_blk_config (virtio 1.2 §5.2.4)."""

from struct import pack_into

CONFIG_SIZE = 60
"""Up to and with write_zeroes_may_unmap and its padding; nothing behind it is offered."""

FIELDS: dict[str, tuple[int, str]] = {
    "capacity": (0, "<Q"),
    "size_max": (8, "<I"),
    "seg_max": (12, "<I"),
    "blk_size": (20, "<I"),
    "num_queues": (34, "<H"),
}
"""Name → (offset, struct format) of the fields that this device fills in."""


class ConfigSpace:
    """Bytes that the driver reads. Fields of features that are not offered stay 0."""

    def __init__(self) -> None:
        self._bytes = bytearray(CONFIG_SIZE)

    def set(self, name: str, value: int) -> None:
        """Store ``value`` in field ``name`` of :data:`FIELDS`."""
        offset, form = FIELDS[name]
        pack_into(form, self._bytes, offset, value)

    def read(self, offset: int, size: int) -> int:
        """Little-endian integer of ``size`` bytes at ``offset``; bytes past the end are 0."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")
