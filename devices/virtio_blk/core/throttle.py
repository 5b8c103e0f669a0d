"""Decides when a disk with rate limits may start its operations. Pure.

Each limit is a bucket of tokens. The bucket fills at the limit's rate, up to its
size, the burst. A request starts when each of its buckets holds at least one
token. It takes its whole cost, even if that leaves the bucket in debt; the next
request waits until the debt is paid. So in any span of time at most
``rate * time + burst`` and the rest of one request start, and no request waits
while there are tokens.

A request is charged once, in full, when its first operation starts. Its other
operations are free and need no tokens: pieces of a large request, ranges, the
rest after a short transfer, second attempts. A merged operation costs the sum of
its requests that are not charged yet.

No request starves. All reads draw from the same buckets, and so do all writes,
so each direction starts in order. A small request does not overtake a large one
of the other direction, because either starts with one token. Queues that share
the buckets wait in line for them (:class:`_Bucket`).

A flush is free, as in QEMU. A discard or a request that writes zeroes moves no
data: it counts as a write of no bytes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.snapshot.fields import Fields, Saved

GRACE_NS: Final = 5_000_000
"""The time for which a bucket with tokens waits for the first queue in line. A sleeping queue needs
some of it to wake up. A halted queue does not come at all."""

_NS: Final = 1_000_000_000
MOST_LEVEL: Final = (1 << 50) * _NS
"""More than a bucket holds, or than requests that are merged can owe it."""


class Admission(NamedTuple):
    """Operations that may start, operations that may not yet, and when to ask again, or 0."""

    started: list[Operation]
    delayed: list[Operation]
    wake_ns: int


class _Bucket:
    """The tokens of one limit. A token is a request, or a byte if ``is_bytes``.

    A queue that finds no tokens waits in line, and the first in line takes first
    when there are tokens again. The level is in units of 10^-9 tokens, so that a
    rate in tokens per second adds a whole number of them in each nanosecond.
    """

    def __init__(self, rate: int, burst: int, is_bytes: bool) -> None:
        self.is_bytes = is_bytes
        self._rate = rate
        self._size = (burst or max(1, rate // 10)) * _NS
        self._level = self._size
        self._seen_ns = 0
        self._since_ns = 0  # when there were tokens again
        self._line: dict[int, None] = {}

    def ready_ns(self, queue: int, now_ns: int) -> int:
        """When ``queue`` may take tokens: ``now_ns`` or earlier if it may at once."""
        rate, level = self._rate, self._level
        if level <= 0:
            self._since_ns = self._seen_ns + -level // rate + 1
        self._level = level = min(self._size, level + rate * (now_ns - self._seen_ns))
        self._seen_ns = now_ns
        if level <= 0:
            self._line.setdefault(queue)
            return now_ns + -level // rate + 1
        if self._line and next(iter(self._line)) != queue:
            until = self._since_ns + GRACE_NS
            if now_ns < until:
                self._line.setdefault(queue)
                return until
            self._line.clear()
        return now_ns

    def level(self, now_ns: int) -> int:
        """The level at ``now_ns``."""
        return min(self._size, self._level + self._rate * (now_ns - self._seen_ns))

    def set_level(self, level: int, now_ns: int) -> None:
        """Have ``level``, or as much of it as fits, at ``now_ns``. No queue waits in line."""
        self._level = min(self._size, level)
        self._seen_ns = now_ns
        self._line.clear()

    def take(self, queue: int, tokens: int) -> None:
        """Let ``queue``, which is ready, take ``tokens``."""
        self._line.pop(queue, None)
        self._level -= tokens * _NS


class Throttle:
    """The limits of one disk, shared by its queues. Each queue has a different number."""

    def __init__(self, limits: RateLimits, lock: AbstractContextManager[object]) -> None:
        """:meth:`admit` holds ``lock``, because queues may call it from several threads."""
        self._lock = lock
        self._request_size = limits.iops_size
        values = vars(limits)

        def buckets(*names: str) -> list[_Bucket]:
            made = {
                name: _Bucket(values[name], values[f"{name}_max"], name.startswith("bps"))
                for name in names
                if values[name]
            }
            self._buckets |= made
            return list(made.values())

        self._buckets: dict[str, _Bucket] = {}
        both = buckets("iops", "bps")
        self._reads = (*both, *buckets("iops_rd", "bps_rd"))
        self._writes = (*both, *buckets("iops_wr", "bps_wr"))

    def levels(self, now_ns: int) -> Fields:
        """The level of each bucket at ``now_ns``, by the name of its limit."""
        with self._lock:
            return {name: bucket.level(now_ns) for name, bucket in self._buckets.items()}

    def set_levels(self, saved: Saved, now_ns: int) -> None:
        """Go on at ``now_ns`` with the levels that :meth:`levels` gave. SnapshotError."""
        with self._lock:
            for name, bucket in self._buckets.items():
                bucket.set_level(saved.integer(name, -MOST_LEVEL, MOST_LEVEL), now_ns)
        saved.end()

    def admit(self, queue: int, operations: Sequence[Operation], now_ns: int) -> Admission:
        """Decide which of ``operations``, the oldest first, may start at ``now_ns`` (monotonic)."""
        started: list[Operation] = []
        delayed: list[Operation] = []
        waiting: set[tuple[_Bucket, ...]] = set()  # the buckets of reads, of writes, or both
        with self._lock:
            for operation in operations:
                kind = operation.kind
                uncharged = [request for request in operation.members if not request.charged]
                if kind == VIRTIO_BLK_T_FLUSH or not uncharged:
                    started.append(operation)
                    continue
                buckets = self._reads if kind == VIRTIO_BLK_T_IN else self._writes
                if buckets in waiting or self._ready_ns(queue, buckets, now_ns) > now_ns:
                    waiting.add(buckets)
                    delayed.append(operation)
                    continue
                for request in uncharged:
                    self._charge(queue, request, buckets)
                started.append(operation)
            # After all have taken their tokens.
            wakes = [self._ready_ns(queue, buckets, now_ns) for buckets in waiting]
        return Admission(started, delayed, min(wakes, default=0))

    def _ready_ns(self, queue: int, buckets: Sequence[_Bucket], now_ns: int) -> int:
        return max([bucket.ready_ns(queue, now_ns) for bucket in buckets], default=now_ns)

    def _charge(self, queue: int, request: Request, buckets: Sequence[_Bucket]) -> None:
        request.charged = True
        moves = request.type in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT)
        length = request.length if moves else 0
        size = self._request_size
        count = max(-(-length // size), 1) if size else 1
        for bucket in buckets:
            bucket.take(queue, length if bucket.is_bytes else count)
