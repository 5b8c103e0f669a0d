"""Answers the requests of one queue: status byte, used ring, counters."""

from typing import TYPE_CHECKING

from pykvm.devices.virtio_blk.constants import (
    OPERATION_NAMES,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_IN,
)
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.hot.words import Bytes
from pykvm.memory.ram import Ram
from pykvm.virtio.chain import ROOM_KEPT, DescriptorChain
from pykvm.virtio.queue import Virtqueue

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.serving.recorder import Recorder


class Answers:
    """Puts answers on ``queue``. Its owner publishes them, and interrupts the driver.

    ``recorder`` records the ends of requests.
    """

    recorder: "Recorder | None"
    _queue: Virtqueue
    _bytes: Bytes
    _stats: Stats

    def __init__(self, queue: Virtqueue, ram: Ram, stats: Stats) -> None:
        self.recorder = None
        self._queue = queue
        self._bytes = ram.bytes
        self._stats = stats

    def executed(self, request: Request, finished_ns: int) -> None:
        """Complete a request that was executed."""
        if self.recorder is not None:
            self.recorder.ended(self._queue, request)
        kind, length = request.type, request.length
        if request.error:
            # A failed read may have written anything, even if the policy hides the failure.
            request.used_length = 0 if kind == VIRTIO_BLK_T_IN else 1
            self._stats.failed(kind)
        else:
            request.used_length = length + 1 if kind == VIRTIO_BLK_T_IN else 1
            self._stats.done(kind, length, finished_ns - request.started_ns, finished_ns)
        self._bytes[request.status_offset] = request.status
        self._queue.push(request.head, request.used_length, True)
        if request.room > ROOM_KEPT:
            self._shrink(request)

    def refused(self, request: Request, now_ns: int) -> None:
        """Complete a request that the parser answered."""
        chain: DescriptorChain
        if request.status != VIRTIO_BLK_S_OK:
            self._stats.invalid(request.type)
        elif request.type in OPERATION_NAMES:
            self._stats.done(request.type, request.length, 0, now_ns)
        wrote = request.status_offset >= 0
        if wrote:
            self._bytes[request.status_offset] = request.status
        self._queue.push(request.head, request.used_length, wrote)
        chain = self._queue.chains[request.head]
        if chain.room > ROOM_KEPT:
            self._shrink(request)

    def _shrink(self, request: Request) -> None:
        """Free the memory for the many segments of an answered request."""
        chain: DescriptorChain
        request.forget()
        chain = self._queue.chains[request.head]
        chain.shrink()
