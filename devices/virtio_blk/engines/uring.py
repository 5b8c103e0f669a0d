"""The engine ``io_uring``: one system call for a batch, any number of operations in flight.

Nearly all operations go through the ring. A few threads execute the others, and
the ring polls the threads' notifier while they have work:

==========================================  ====================================================
executed by threads                         reason
==========================================  ====================================================
syncs of files in the host's page cache     only :meth:`Image.sync` can decide whether a sync
                                            succeeded, and it makes one sync at a time
unaligned transfers with O_DIRECT           need a bounce buffer (``direct.py``)
writes to blocks larger than a sector,      hold ``Image.edge_lock``
zeroes where blocks may be larger
discards and zeroes on block devices, and   take ioctls, or many writes
on filesystems that support neither
durable zeroes                              need a sync afterwards
operations that fail with EINTR or EAGAIN   a thread can wait where the ring did not
O_DIRECT transfers that fail with EINVAL    the host needs a larger alignment than it seemed
==========================================  ====================================================

With O_DIRECT, a flush is IORING_OP_FSYNC, and a durable write has RWF_DSYNC: a
disk with that ability writes these data through its cache, without a flush of
the whole cache. Discards and zeroes are IORING_OP_FALLOCATE.

Guest RAM and the file are not registered with the ring. Registered memory is
pinned, so the host would need memory for all of the guest's RAM at once, and
the gain is small (docs/decisions/0009-io-uring-by-hand.md).
"""

import errno
import select
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SIZE,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine
from pykvm.devices.virtio_blk.image.allocation import REFUSALS
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.host.io_uring import (
    IORING_FSYNC_DATASYNC,
    IORING_OP_FALLOCATE,
    IORING_OP_FSYNC,
    IORING_OP_POLL_ADD,
    IORING_OP_READ,
    IORING_OP_READV,
    IORING_OP_WRITE,
    IORING_OP_WRITEV,
    RWF_DSYNC,
    Ring,
)
from pykvm.hot.word_watch import Watch
from pykvm.hot.words import NO_BYTES, U64, Bytes, Words64
from pykvm.memory.guest import address_of
from pykvm.memory.ram import Ram

ENTRIES: Final = 256
"""The most operations in the ring at once; the others wait. Enough for any disk's full speed."""
IOVECS: Final = 2048
"""The most segments in one submission: more than the 1024 of the largest operation."""
_RETRY_SECONDS: Final = 0.001
"""Seconds until the next attempt if the kernel lacks memory and no completion will free any."""
_POLL_TAG: Final = 0
"""The tag of the submission that polls the threads' notifier; operations have larger tags."""


class IoUringEngine:
    """Executes operations through a ring. HostError if the host cannot create one."""

    notifier: int
    immediate: bool
    _ring: Ring
    _threads: ThreadsEngine
    _image: Image
    _fd: int
    _memory: Bytes
    _base: U64
    _direct: bool
    _unaligned: int
    _ring_writes: bool
    _ring_zeroes: bool
    _waiting: deque[Operation]
    _executing: list[Operation | None]
    _free: list[int]
    _done: list[Operation]
    _delegated: int
    _polling: bool
    _stopped: bool
    _iovecs: Words64
    _iovecs_at: U64
    _iovecs_used: int

    def __init__(
        self,
        image: Image,
        ram: Ram,
        entries: int = ENTRIES,
        make_ring: Callable[[int], Ring] = Ring,
    ) -> None:
        self._ring = make_ring(entries)
        try:
            self._threads = ThreadsEngine(image, ram)
        except BaseException:
            self._ring.close()
            raise
        self.notifier = self._ring.fd
        self.immediate = False
        self._image = image
        self._fd = image.fd
        self._memory = ram.bytes  # its address must not change
        self._base = address_of(ram.bytes)
        self._direct = image.cache.direct
        self._ring_zeroes = not image.edges
        self._read_alignment()
        self._waiting = deque()
        # By tag; the first tag is the poll's, which takes room in the ring, too.
        self._executing = [None] * entries
        self._free = list(range(entries - 1, _POLL_TAG, -1))
        self._done = []
        self._delegated = 0  # operations that the threads execute
        self._polling = False
        self._stopped = False
        iovecs = array("Q", bytes(16 * IOVECS))
        self._iovecs = memoryview(iovecs)
        self._iovecs_at = iovecs.buffer_info()[0]
        self._iovecs_used = 0

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        fits = self._fits_ring
        for_threads = []
        for operation in operations:
            if fits(operation):
                self._waiting.append(operation)
            else:
                for_threads.append(operation)
        if for_threads:
            self._delegate(for_threads)
        self._start()

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        # In self._done until nothing can raise any more.
        done, ring = self._done, self._ring
        operation: Operation
        count = ring.completed()
        now = time.monotonic_ns() if count else 0
        for _ in range(count):
            tag = ring.take()
            if tag == _POLL_TAG:
                self._polling = False
                continue
            operation = self._finish(tag)
            result = ring.result
            ranged = operation.kind >= VIRTIO_BLK_T_DISCARD
            if result >= 0:
                operation.moved = operation.length if ranged else result
            elif self._retry_in_thread(-result, ranged):
                self._delegate((operation,))
                continue
            else:
                operation.error = -result
            operation.finished_ns = now
            done.append(operation)
        delegated = self._delegated
        if delegated and not self._polling:
            finished = self._threads.completions()
            self._delegated -= len(finished)
            done += finished
            self._read_alignment()
        if delegated or self._waiting or ring.pending:
            self._start()
        self._done = []
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`."""
        self._ring.watch(watch)
        return True

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._stopped = True
        self._threads.stop()

    def close(self) -> None:
        """See :class:`Engine`."""
        left = len(self._done) + len(self._waiting) + self._in_flight()
        assert not left, "completions were left behind"
        self._threads.close()
        # No view of memory may be left when it is unmapped.
        self._memory = NO_BYTES
        self._ring.close()

    def _delegate(self, operations: Sequence[Operation]) -> None:
        """Have threads execute ``operations``."""
        self._delegated += len(operations)
        self._threads.submit(operations)

    def _in_flight(self) -> int:
        """The number of operations in the ring."""
        return len(self._executing) - 1 - len(self._free)

    def _finish(self, tag: int) -> Operation:
        """The operation with ``tag``, which is free again."""
        operation = self._executing[tag]
        assert operation is not None, "the kernel completes each submission once"
        self._executing[tag] = None
        self._free.append(tag)
        return operation

    def _retry_in_thread(self, error: int, ranged: bool) -> bool:
        """True if a thread should retry an operation that failed in the ring with ``error``."""
        if error in (errno.EINTR, errno.EAGAIN):
            return True
        return error in REFUSALS if ranged else error == errno.EINVAL and self._direct

    def _read_alignment(self) -> None:
        """Read the image's alignment, which may have grown."""
        alignment = self._image.alignment
        self._unaligned = alignment - 1
        self._ring_writes = not self._direct or alignment <= SECTOR_SIZE

    def _fits_ring(self, operation: Operation) -> bool:
        """True if the ring can execute ``operation``."""
        if operation.kind == VIRTIO_BLK_T_FLUSH:
            return self._direct and not self._image.readonly
        if operation.kind >= VIRTIO_BLK_T_DISCARD:
            return self._fallocate_mode(operation) != 0
        if not self._direct:
            return operation.kind == VIRTIO_BLK_T_IN or not operation.durable
        if operation.kind != VIRTIO_BLK_T_IN and not self._ring_writes:
            return False
        offsets, lengths, base = operation.offsets, operation.lengths, self._base
        bits = operation.offset
        for index in range(operation.first, operation.last):
            bits |= (base + offsets[index]) | lengths[index]
        return not bits & self._unaligned

    def _fallocate_mode(self, operation: Operation) -> int:
        """The mode of fallocate for a DISCARD or WRITE_ZEROES; 0: the ring cannot execute it."""
        discard = operation.kind == VIRTIO_BLK_T_DISCARD
        if not discard and (operation.durable or not self._ring_zeroes):
            return 0
        return self._image.allocation.mode(discard, operation.unmap)

    def _start(self) -> None:
        """Start waiting operations while the ring has room, and have the ring poll the threads."""
        ring, waiting = self._ring, self._waiting
        if self._stopped and waiting:
            self._delegate(waiting)  # which cancel them
            waiting.clear()
        while waiting and self._free:
            if self._prepare(waiting[0]):
                waiting.popleft()
            elif not self._enter():
                break
        if self._delegated and not self._polling:
            self._polling = True
            ring.prepare(
                IORING_OP_POLL_ADD, self._threads.notifier, 0, 0, 0, select.POLLIN, _POLL_TAG
            )
        while ring.pending and not self._enter():
            if self._in_flight() + self._polling > ring.pending:
                return  # the next completion leads to the next attempt
            time.sleep(_RETRY_SECONDS)

    def _prepare(self, operation: Operation) -> bool:
        """Put ``operation`` into the ring; False if there are not enough iovecs left."""
        first, count = operation.first, operation.last - operation.first
        kind = operation.kind
        flags = 0
        if kind == VIRTIO_BLK_T_FLUSH:
            opcode, flags = IORING_OP_FSYNC, IORING_FSYNC_DATASYNC
            address = length = 0
        elif kind >= VIRTIO_BLK_T_DISCARD:
            length = self._fallocate_mode(operation)
            if not length:  # the host has refused it meanwhile
                self._delegate((operation,))
                return True
            opcode, address = IORING_OP_FALLOCATE, operation.length
        elif count == 1:
            opcode = IORING_OP_READ if kind == VIRTIO_BLK_T_IN else IORING_OP_WRITE
            address = self._base + operation.offsets[first]
            length = operation.length
        else:
            if self._iovecs_used + count > IOVECS:
                return False
            opcode = IORING_OP_READV if kind == VIRTIO_BLK_T_IN else IORING_OP_WRITEV
            address = self._gather(operation)
            length = count
        if operation.durable and kind == VIRTIO_BLK_T_OUT:
            flags = RWF_DSYNC
        tag: int = self._free.pop()
        self._executing[tag] = operation
        self._ring.prepare(opcode, self._fd, operation.offset, address, length, flags, tag)
        return True

    def _gather(self, operation: Operation) -> int:
        """Fill iovecs for the segments of ``operation``; returns their address on the host."""
        iovecs, base, used = self._iovecs, self._base, self._iovecs_used
        offsets, lengths = operation.offsets, operation.lengths
        at = 2 * used
        for index in range(operation.first, operation.last):
            iovecs[at] = base + offsets[index]
            iovecs[at + 1] = lengths[index]
            at += 2
        self._iovecs_used = at // 2
        return self._iovecs_at + 16 * used

    def _enter(self) -> bool:
        """Submit the pending entries; False if the kernel did not take all of them yet."""
        ring = self._ring
        try:
            ring.submit()
        except OSError:
            # A bug; but a reset of the device must not wait for these operations for ever.
            for tag in ring.take_back():
                if tag == _POLL_TAG:
                    self._polling = False
                else:
                    operation = self._finish(tag)
                    operation.error = errno.EIO
                    operation.finished_ns = time.monotonic_ns()
                    self._done.append(operation)
            raise
        if not ring.pending:
            self._iovecs_used = 0
        return not ring.pending
