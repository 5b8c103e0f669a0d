"""When a disk with rate limits may start its operations. Pure.

Each limit is a bucket of tokens that fills at the limit's rate up to its size,
the burst. A request starts when every bucket that it draws from has any
tokens, and takes what it costs, be it more than there is: the next one then
waits until the debt is paid. So in any span of time no more is started than
``rate * time + burst`` and the rest of one request; and nothing waits while
there are tokens.

A request is charged once, for all of it, when its first operation starts. What
else comes to be executed for it is free and waits for no tokens: pieces of a
large request, ranges, what is left after a short transfer, second attempts.
A merged operation costs what those of its requests do that were not charged.

Nobody starves. All reads draw from the same buckets, and all writes, so each
start in their order; a small one does not overtake a large one of the other
direction, for any tokens do for either. Queues that share the buckets stand in
line for them (:class:`_Bucket`).

A flush is free, as in QEMU. What discards or makes zeros moves no data: it is
a write of no bytes.
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

GRACE_NS: Final = 5_000_000
"""How long a bucket with tokens is kept for the first in line: who sleeps until then needs time
to wake up, and who was halted never comes."""

_NS: Final = 1_000_000_000


class Admission(NamedTuple):
    """Operations that may start, those that may not yet, and when to ask again (0: need not)."""

    started: list[Operation]
    delayed: list[Operation]
    wake_ns: int


class _Bucket:
    """The tokens of one limit; requests, or bytes if ``bytes``.

    Whoever finds no tokens stands in line, and the first in line takes first
    when there are some again. Counts in tokens/10^9, which a rate in tokens
    per second makes whole numbers of in any number of nanoseconds.
    """

    def __init__(self, rate: int, burst: int, is_bytes: bool) -> None:
        self.is_bytes = is_bytes
        self._rate = rate
        self._size = (burst or max(1, rate // 10)) * _NS
        self._level = self._size
        self._seen_ns = 0
        self._since_ns = 0  # when there were tokens again
        self._line: dict[int, None] = {}

    def ready_ns(self, who: int, now_ns: int) -> int:
        """When ``who`` may take: not after ``now_ns`` if it may at once."""
        rate, level = self._rate, self._level
        if level <= 0:
            self._since_ns = self._seen_ns + -level // rate + 1
        self._level = level = min(self._size, level + rate * (now_ns - self._seen_ns))
        self._seen_ns = now_ns
        if level <= 0:
            self._line.setdefault(who)
            return now_ns + -level // rate + 1
        if self._line and next(iter(self._line)) != who:
            until = self._since_ns + GRACE_NS
            if now_ns < until:
                self._line.setdefault(who)
                return until
            self._line.clear()
        return now_ns

    def take(self, who: int, tokens: int) -> None:
        """``who`` may, and does."""
        self._line.pop(who, None)
        self._level -= tokens * _NS


class Throttle:
    """The limits of one disk, shared by its queues; each queue has a number of its own."""

    def __init__(self, limits: RateLimits, lock: AbstractContextManager[object]) -> None:
        """``lock`` is held while an answer is found: queues may ask from several threads."""
        self._lock = lock
        self._request_size = limits.iops_size
        values = vars(limits)

        def buckets(*names: str) -> list[_Bucket]:
            return [
                _Bucket(values[name], values[f"{name}_max"], name.startswith("bps"))
                for name in names
                if values[name]
            ]

        both = buckets("iops", "bps")
        self._reads = (*both, *buckets("iops_rd", "bps_rd"))
        self._writes = (*both, *buckets("iops_wr", "bps_wr"))

    def admit(self, queue: int, operations: Sequence[Operation], now_ns: int) -> Admission:
        """Which of ``operations``, the oldest first, may start now (time.monotonic_ns)."""
        started: list[Operation] = []
        delayed: list[Operation] = []
        waiting: set[tuple[_Bucket, ...]] = set()  # of reads, of writes, or of both
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
            # Now that all have taken theirs.
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
