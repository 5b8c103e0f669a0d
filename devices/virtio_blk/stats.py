"""What a disk counts, under the names that QEMU's ``info blockstats`` made familiar.

An operation is a request of the guest that succeeded: it counts once, however
often it was tried, and whether or not it was merged with others. Requests that
the host could not carry out count as failed, requests that the guest got wrong
as invalid, and neither adds bytes or time.
"""

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)

FIELDS = (
    "rd_bytes",
    "wr_bytes",
    "rd_operations",
    "wr_operations",
    "flush_operations",
    "rd_total_time_ns",
    "wr_total_time_ns",
    "flush_total_time_ns",
    "rd_merged",
    "wr_merged",
    "failed_rd_operations",
    "failed_wr_operations",
    "failed_flush_operations",
    "invalid_rd_operations",
    "invalid_wr_operations",
    "invalid_other_operations",
)


class Stats:
    """Counters of one disk. Times are from taking a request off the ring to its completion.

    GET_ID counts nowhere. ``invalid_other`` holds unreadable headers and
    unknown types.
    """

    __slots__ = FIELDS

    def __init__(self) -> None:
        self.rd_bytes = 0
        self.wr_bytes = 0
        self.rd_operations = 0
        self.wr_operations = 0
        self.flush_operations = 0
        self.rd_total_time_ns = 0
        self.wr_total_time_ns = 0
        self.flush_total_time_ns = 0
        self.rd_merged = 0
        self.wr_merged = 0
        self.failed_rd_operations = 0
        self.failed_wr_operations = 0
        self.failed_flush_operations = 0
        self.invalid_rd_operations = 0
        self.invalid_wr_operations = 0
        self.invalid_other_operations = 0

    def done(self, kind: int, length: int, elapsed_ns: int) -> None:
        """A request of type ``kind`` (IN, OUT or FLUSH) with ``length`` bytes succeeded."""
        if kind == VIRTIO_BLK_T_IN:
            self.rd_bytes += length
            self.rd_operations += 1
            self.rd_total_time_ns += elapsed_ns
        elif kind == VIRTIO_BLK_T_OUT:
            self.wr_bytes += length
            self.wr_operations += 1
            self.wr_total_time_ns += elapsed_ns
        elif kind == VIRTIO_BLK_T_FLUSH:
            self.flush_operations += 1
            self.flush_total_time_ns += elapsed_ns

    def merged(self, kind: int, joined: int) -> None:
        """``joined`` + 1 requests of type ``kind`` (IN or OUT) were made one operation."""
        if kind == VIRTIO_BLK_T_IN:
            self.rd_merged += joined
        else:
            self.wr_merged += joined

    def failed(self, kind: int) -> None:
        """The host could not carry out a request of type ``kind`` (IN, OUT or FLUSH)."""
        if kind == VIRTIO_BLK_T_IN:
            self.failed_rd_operations += 1
        elif kind == VIRTIO_BLK_T_OUT:
            self.failed_wr_operations += 1
        else:
            self.failed_flush_operations += 1

    def invalid(self, kind: int) -> None:
        """The guest sent a request that no disk could carry out."""
        if kind == VIRTIO_BLK_T_IN:
            self.invalid_rd_operations += 1
        elif kind == VIRTIO_BLK_T_OUT:
            self.invalid_wr_operations += 1
        else:
            self.invalid_other_operations += 1

    def as_dict(self) -> dict[str, int]:
        """Every counter by name. Another thread may be counting meanwhile."""
        return {name: getattr(self, name) for name in FIELDS}
