"""Records the writes and flushes of a disk, for :mod:`pykvm.devices.virtio_blk.observe.write_log`.

A flush covers only the writes whose ends the driver had seen when it sent the flush. The device
does not know that moment. On a split ring it knows a moment that is not later: the driver cannot
have seen an end if the flush was in the available ring before the device showed that end. A packed
ring does not tell how far the driver has filled it, so there the recorder takes the moment at which
the device took the flush.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind, WriteLog
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram
from pykvm.virtio.queue import Virtqueue

_KINDS = {
    VIRTIO_BLK_T_OUT: WriteKind.WRITE,
    VIRTIO_BLK_T_WRITE_ZEROES: WriteKind.ZEROES,
    VIRTIO_BLK_T_DISCARD: WriteKind.DISCARD,
    VIRTIO_BLK_T_FLUSH: WriteKind.FLUSH,
}
MOST_BYTES: Final = 1 << 30
"""The written data that a recording keeps, and the memory of its entries."""
_ENTRY_BYTES: Final = 300
_SECTOR_BYTES: Final = 8
"""For each sector of zeros or of a discard, which takes memory when states are tried."""
_MODULUS: Final = 1 << 16


class Recorder:
    """Records from its creation on. The services of all queues call it, in their threads."""

    def __init__(
        self, sectors: int, writes_through: Callable[[], bool], most: int = MOST_BYTES
    ) -> None:
        """``sectors`` is the size of the disk in units of 512 bytes.

        ``writes_through()``: the driver may take each write that has ended for stable. After
        ``most`` bytes of written data the log is given up: the guest decides how much it writes.
        """
        self.sectors = sectors
        self._most = most
        self._writes_through = writes_through
        self._lock = threading.Lock()
        self._event = 0
        self._open: dict[tuple[int, int], list[Entry]] = {}
        self._ended: list[Entry] = []
        self._places: dict[int, _Place] = {}
        self._spoilt = ""

    def began(self, queue: Virtqueue, request: Request, ram: Ram) -> None:
        """``queue`` gave ``request``, which was accepted, and is not answered yet."""
        kind = _KINDS.get(request.type)
        with self._lock:
            place = self._places.get(queue.index)
            if kind is None:
                # The indexes have 16 bits, so a place has to be followed through reads, too.
                if place is not None and place.queue is queue:
                    place.seen_by_the_last_taken()
                return
            if self._spoilt:
                return
            if place is None or place.queue is not queue:
                # The driver has not used the queue before, and may have seen all ends so far.
                place = self._places[queue.index] = _Place(queue, self._event)
            sent = place.seen_by_the_last_taken()
            made = []
            durable = self._writes_through()
            for sector, sectors, data in _extents(kind, request, ram):
                made.append(
                    Entry(
                        kind, self._event, NEVER, sent, queue.index, sector, sectors, data, durable
                    )
                )
                self._event += 1
                self._most -= len(data) + sectors * _SECTOR_BYTES + _ENTRY_BYTES
            key = queue.index, request.head
            # A reset of the device forgets the requests in flight: they never end.
            self._ended += self._open.pop(key, [])
            self._open[key] = made
            if self._most < 0:
                self._give_up("the guest wrote more than a recording keeps")

    def ended(self, queue: Virtqueue, request: Request) -> None:
        """``queue`` is about to get ``request`` back. Its driver has not seen the end yet.

        A request that failed never ends: its sectors may have any content.
        """
        with self._lock:
            made = self._open.pop((queue.index, request.head), None)
            if made is None:
                return
            for entry in made:
                ended = NEVER
                # With the policy "ignore" the status of a failed request is OK.
                if request.status == VIRTIO_BLK_S_OK and not request.error:
                    ended = self._event
                    self._event += 1
                durable = entry.durable and self._writes_through()
                self._ended.append(replace(entry, ended=ended, durable=durable))
            for place in self._places.values():
                place.shown(self._event)

    def mark(self, label: str) -> None:
        """Add a mark."""
        with self._lock:
            event = self._event
            self._ended.append(Entry(WriteKind.MARK, event, event, event, label=label))
            self._event += 1

    def spoil(self, reason: str) -> None:
        """There can be no log any more, for this reason."""
        with self._lock:
            self._give_up(reason)

    def log(self) -> WriteLog:
        """The log until now. Requests in flight have not ended. UsageError after :meth:`spoil`."""
        with self._lock:
            if self._spoilt:
                raise UsageError(
                    f"the recording has no log: {self._spoilt}", "begin a new recording"
                )
            waiting = [entry for made in self._open.values() for entry in made]
            entries = sorted(self._ended + waiting, key=lambda entry: entry.began)
        return WriteLog(self.sectors, entries)

    def _give_up(self, reason: str) -> None:
        self._spoilt = self._spoilt or reason
        self._open.clear()
        self._ended.clear()


class _Place:
    """The place of a queue in its available ring, and the events that its driver has seen there.

    A place is the number of heads since the queue's first request that was recorded.
    """

    def __init__(self, queue: Virtqueue, seen: int) -> None:
        self.queue = queue
        self._raw = queue.taken()
        self._place = 0
        self._latest = seen
        # (place, event): heads before ``place`` were sent before the driver saw ``event - 1``.
        self._shown: deque[tuple[int, int]] = deque()
        self._seen = seen

    def seen_by_the_last_taken(self) -> int:
        """The driver can have seen the events before this number when it sent that head."""
        if self._raw < 0:
            return self._latest
        place = self._of(self.queue.taken())
        while self._shown and self._shown[0][0] < place:
            self._seen = self._shown.popleft()[1]
        return self._seen

    def shown(self, event: int) -> None:
        """The events before ``event`` are about to be shown to the driver."""
        self._latest = event
        if self._raw < 0:
            return
        place = self._of(self.queue.offered())
        if self._shown and self._shown[-1][0] == place:
            self._shown.pop()
        self._shown.append((place, event))

    def _of(self, raw: int) -> int:
        """The place of the 16-bit index ``raw``, which is less than half the range away."""
        half = _MODULUS // 2
        place = self._place + (raw - self._raw + half) % _MODULUS - half
        if place > self._place:
            self._raw, self._place = raw, place
        return place


def _extents(kind: WriteKind, request: Request, ram: Ram) -> list[tuple[int, int, bytes]]:
    """(sector, sectors, data) of each range that ``request`` changes; one of 0 for a flush."""
    if kind is WriteKind.FLUSH:
        return [(0, 0, b"")]
    if kind is WriteKind.WRITE:
        offsets, lengths = request.offsets, request.lengths
        memory = memoryview(ram.bytes)
        data = b"".join(
            memory[offsets[i] : offsets[i] + lengths[i]] for i in range(request.first, request.last)
        )
        return [(request.sector, len(data) >> SECTOR_SHIFT, data)] if data else []
    ranges = request.ranges
    return [
        (ranges[i] >> SECTOR_SHIFT, ranges[i + 1] >> SECTOR_SHIFT, b"")
        for i in range(0, len(ranges), 3)
    ]
