"""Checks the addresses and the size of a virtqueue. Pure."""

from collections.abc import Iterable

from pykvm.memory.ram import Ram
from pykvm.virtio.constants import (
    VIRTQ_AVAIL_ALIGN,
    VIRTQ_DESC_ALIGN,
    VIRTQ_DESC_SIZE,
    VIRTQ_EVENT_SUPPRESS_ALIGN,
    VIRTQ_EVENT_SUPPRESS_SIZE,
    VIRTQ_MAX_SIZE,
    VIRTQ_USED_ALIGN,
)


def ring_error(ram: Ram, size: int, desc: int, avail: int, used: int) -> str:
    """Why a split queue cannot have this geometry; "" if it can (§2.7, §2.7.10).

    ``size`` is in descriptors. The rest are guest-physical addresses of the three areas.
    """
    if not 0 < size <= VIRTQ_MAX_SIZE or size & (size - 1):
        return f"the queue size {size} is not a power of 2 up to {VIRTQ_MAX_SIZE}"
    return _error(
        ram,
        (
            ("descriptor table", desc, VIRTQ_DESC_ALIGN, VIRTQ_DESC_SIZE * size),
            ("available ring", avail, VIRTQ_AVAIL_ALIGN, 6 + 2 * size),
            ("used ring", used, VIRTQ_USED_ALIGN, 6 + 8 * size),
        ),
    )


def packed_ring_error(ram: Ram, size: int, desc: int, driver: int, device: int) -> str:
    """As :func:`ring_error`, for a packed queue (§2.8.10.1)."""
    if not 0 < size <= VIRTQ_MAX_SIZE:
        return f"the queue size {size} is not from 1 to {VIRTQ_MAX_SIZE}"
    small = VIRTQ_EVENT_SUPPRESS_ALIGN, VIRTQ_EVENT_SUPPRESS_SIZE
    return _error(
        ram,
        (
            ("descriptor ring", desc, VIRTQ_DESC_ALIGN, VIRTQ_DESC_SIZE * size),
            ("driver event suppression structure", driver, *small),
            ("device event suppression structure", device, *small),
        ),
    )


def _error(ram: Ram, areas: Iterable[tuple[str, int, int, int]]) -> str:
    """``areas`` are (name, address, alignment, bytes)."""
    for name, address, align, length in areas:
        if address % align:
            return f"the {name} at {address:#x} is not aligned to {align} bytes"
        if (offset := ram.translate(address, length)) < 0:
            return f"the {name} at {address:#x} ({length} bytes) does not lie within guest RAM"
        # Regions are page-aligned in the buffer; single-access words depend on it.
        assert offset % align == 0, "a RAM region is misaligned in its buffer"
    return ""
