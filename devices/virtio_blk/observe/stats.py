"""The statistics of a disk, under the familiar names of QEMU's ``info blockstats``.

An operation, in these counters, is a request of the guest that succeeded. It
counts once, regardless of attempts, pieces and merging. A request that the host
could not execute counts as failed, even if the guest got a success
(``werror=ignore``). A request that breaks the rules counts as invalid. Neither
adds bytes or time. A request that is executed again after a stop of the VM
counts when it is answered. A request that a reset drops does not count. If k
requests become one operation, they add k - 1 to ``rd_merged`` or ``wr_merged``
when they come off the ring, regardless of the result.

``unmap`` counts discards, as in QEMU. ``zero`` counts requests that write zeroes.
QEMU counts these as writes, but they bring no data from the guest.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.observe.histogram import Histogram

CLASSIC: Final = (
    "rd_bytes",
    "wr_bytes",
    "rd_operations",
    "wr_operations",
    "flush_operations",
    "wr_total_time_ns",
    "rd_total_time_ns",
    "flush_total_time_ns",
    "rd_merged",
    "wr_merged",
)
"""The fields of QEMU's ``info blockstats``, in its order."""

COUNTERS: Final = (
    *CLASSIC,
    "unmap_bytes",
    "unmap_operations",
    "unmap_total_time_ns",
    "zero_bytes",
    "zero_operations",
    "zero_total_time_ns",
    "failed_rd_operations",
    "failed_wr_operations",
    "failed_flush_operations",
    "failed_unmap_operations",
    "failed_zero_operations",
    "invalid_rd_operations",
    "invalid_wr_operations",
    "invalid_flush_operations",
    "invalid_unmap_operations",
    "invalid_zero_operations",
    "invalid_other_operations",
)


class Stats:
    """The counters of one queue, or of a whole disk.

    A time begins when a request comes off the ring and ends at its completion.
    A GET_ID that succeeds does not count. ``invalid_other_operations`` counts
    unreadable headers, unknown types and all others without a counter of their own.
    """

    rd_bytes: int
    wr_bytes: int
    rd_operations: int
    wr_operations: int
    flush_operations: int
    rd_total_time_ns: int
    wr_total_time_ns: int
    flush_total_time_ns: int
    rd_merged: int
    wr_merged: int
    unmap_bytes: int
    unmap_operations: int
    unmap_total_time_ns: int
    zero_bytes: int
    zero_operations: int
    zero_total_time_ns: int
    failed_rd_operations: int
    failed_wr_operations: int
    failed_flush_operations: int
    failed_unmap_operations: int
    failed_zero_operations: int
    invalid_rd_operations: int
    invalid_wr_operations: int
    invalid_flush_operations: int
    invalid_unmap_operations: int
    invalid_zero_operations: int
    invalid_other_operations: int
    _rd_latency: Histogram
    _wr_latency: Histogram
    _flush_latency: Histogram
    _unmap_latency: Histogram
    _zero_latency: Histogram
    _last_ns: int

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
        self.unmap_bytes = 0
        self.unmap_operations = 0
        self.unmap_total_time_ns = 0
        self.zero_bytes = 0
        self.zero_operations = 0
        self.zero_total_time_ns = 0
        self.failed_rd_operations = 0
        self.failed_wr_operations = 0
        self.failed_flush_operations = 0
        self.failed_unmap_operations = 0
        self.failed_zero_operations = 0
        self.invalid_rd_operations = 0
        self.invalid_wr_operations = 0
        self.invalid_flush_operations = 0
        self.invalid_unmap_operations = 0
        self.invalid_zero_operations = 0
        self.invalid_other_operations = 0
        self._rd_latency = Histogram()
        self._wr_latency = Histogram()
        self._flush_latency = Histogram()
        self._unmap_latency = Histogram()
        self._zero_latency = Histogram()
        self._last_ns = time.monotonic_ns()

    def done(self, kind: int, length: int, elapsed_ns: int, now_ns: int) -> None:
        """A request of type ``kind`` for ``length`` bytes succeeded at ``now_ns`` (monotonic)."""
        self._last_ns = now_ns
        if kind == VIRTIO_BLK_T_IN:
            self.rd_bytes += length
            self.rd_operations += 1
            self.rd_total_time_ns += elapsed_ns
            self._rd_latency.add(elapsed_ns)
        elif kind == VIRTIO_BLK_T_OUT:
            self.wr_bytes += length
            self.wr_operations += 1
            self.wr_total_time_ns += elapsed_ns
            self._wr_latency.add(elapsed_ns)
        elif kind == VIRTIO_BLK_T_FLUSH:
            self.flush_operations += 1
            self.flush_total_time_ns += elapsed_ns
            self._flush_latency.add(elapsed_ns)
        elif kind == VIRTIO_BLK_T_DISCARD:
            self.unmap_bytes += length
            self.unmap_operations += 1
            self.unmap_total_time_ns += elapsed_ns
            self._unmap_latency.add(elapsed_ns)
        elif kind == VIRTIO_BLK_T_WRITE_ZEROES:
            self.zero_bytes += length
            self.zero_operations += 1
            self.zero_total_time_ns += elapsed_ns
            self._zero_latency.add(elapsed_ns)

    def merged(self, kind: int, joined: int) -> None:
        """``joined`` + 1 requests of type ``kind`` (IN or OUT) became one operation."""
        if kind == VIRTIO_BLK_T_IN:
            self.rd_merged += joined
        else:
            self.wr_merged += joined

    def failed(self, kind: int) -> None:
        """The host could not execute a request of type ``kind``."""
        if kind == VIRTIO_BLK_T_IN:
            self.failed_rd_operations += 1
        elif kind == VIRTIO_BLK_T_OUT:
            self.failed_wr_operations += 1
        elif kind == VIRTIO_BLK_T_FLUSH:
            self.failed_flush_operations += 1
        elif kind == VIRTIO_BLK_T_DISCARD:
            self.failed_unmap_operations += 1
        else:
            self.failed_zero_operations += 1

    def invalid(self, kind: int) -> None:
        """The guest sent an invalid request of type ``kind``."""
        if kind == VIRTIO_BLK_T_IN:
            self.invalid_rd_operations += 1
        elif kind == VIRTIO_BLK_T_OUT:
            self.invalid_wr_operations += 1
        elif kind == VIRTIO_BLK_T_FLUSH:
            self.invalid_flush_operations += 1
        elif kind == VIRTIO_BLK_T_DISCARD:
            self.invalid_unmap_operations += 1
        elif kind == VIRTIO_BLK_T_WRITE_ZEROES:
            self.invalid_zero_operations += 1
        else:
            self.invalid_other_operations += 1

    @classmethod
    def total(cls, parts: Sequence["Stats"]) -> "Stats":
        """The sum of ``parts``, each of which a thread of its own may be changing."""
        whole = cls()
        for name in COUNTERS:
            setattr(whole, name, sum(getattr(part, name) for part in parts))
        for part in parts:
            whole._rd_latency.add_all(part._rd_latency)
            whole._wr_latency.add_all(part._wr_latency)
            whole._flush_latency.add_all(part._flush_latency)
            whole._unmap_latency.add_all(part._unmap_latency)
            whole._zero_latency.add_all(part._zero_latency)
        whole._last_ns = max(part._last_ns for part in parts)
        return whole

    def counters(self) -> dict[str, int]:
        """Every counter by name. Another thread may count meanwhile."""
        return {name: getattr(self, name) for name in COUNTERS}

    def as_dict(self) -> dict[str, int]:
        """:meth:`counters`, and ``idle_time_ns``: the time since the last success of a request.

        Before the first success, it is the time since the disk was made. Failed
        and invalid requests do not end it, as in QEMU with ``account_failed`` and
        ``account_invalid`` off.
        """
        counts = self.counters()
        counts["idle_time_ns"] = max(0, time.monotonic_ns() - self._last_ns)
        return counts

    def histogram(self, operation: str) -> Histogram:
        """The times of the successful requests of ``operation``, one of OPERATION_NAMES.

        Their sum is ``rd_total_time_ns`` for reads, and so on.
        """
        return {
            "read": self._rd_latency,
            "write": self._wr_latency,
            "flush": self._flush_latency,
            "discard": self._unmap_latency,
            "write-zeroes": self._zero_latency,
        }[operation]

    def histograms(self) -> dict[str, dict[str, list[int]]]:
        """All histograms, in the form of ``query-blockstats``."""
        return {
            "rd_latency_histogram": self._rd_latency.as_dict(),
            "wr_latency_histogram": self._wr_latency.as_dict(),
            "flush_latency_histogram": self._flush_latency.as_dict(),
            "unmap_latency_histogram": self._unmap_latency.as_dict(),
            "zero_latency_histogram": self._zero_latency.as_dict(),
        }


def classic_line(device: str, counts: Mapping[str, int]) -> str:
    """``counts`` of :meth:`Stats.as_dict` as the one line of ``info blockstats`` for ``device``."""
    return f"{device}: " + " ".join(f"{name}={counts[name]}" for name in CLASSIC)
