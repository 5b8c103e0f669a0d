"""An engine on io_uring: one system call for a batch, any number of operations under way.

Nearly everything goes through the ring. The rest goes to a few threads, whose
notifier the ring watches while they have something to do:

==========================================  ====================================================
what                                        why not the ring
==========================================  ====================================================
syncs of files in the host's page cache     :meth:`Image.sync` alone may judge whether they
                                            succeeded, and makes them one by one
what O_DIRECT refuses, unaligned            has to bounce (``direct.py``)
writes to blocks larger than a sector,      have to hold ``Image.edge_lock``
zeroes where blocks may be larger
discards and zeroes on block devices, and   are ioctls, or many writes
where the filesystem has none of them
durable zeroes                              are followed by a sync
what comes back with EINTR or EAGAIN        a thread waits where the ring did not
what O_DIRECT refuses with EINVAL           was less aligned than the host wants after all
==========================================  ====================================================

With O_DIRECT a flush is IORING_OP_FSYNC, and a durable write has RWF_DSYNC: a
disk that can do it writes through its cache, without a flush of all of it.
Discards and zeroes are IORING_OP_FALLOCATE.

Guest RAM and the file are not registered with the ring. Registered memory is
pinned, so the host would have to find all of the guest's RAM at once, and it
would save little (docs/decisions/0009-io-uring-by-hand.md).
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
"""Operations in the ring at once; others wait. No more are needed for any disk's full speed."""
IOVECS: Final = 2048
"""Segments in one submission, more than the 1024 of the largest operation."""
_PATIENCE: Final = 0.001
"""Seconds until the next attempt when the kernel has no memory and nothing that would free any."""
_WATCH: Final = 0
"""The tag of the submission that watches the threads; operations have others."""


class IoUringEngine:
    """Executes operations through a ring. HostError where that cannot be made."""

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
    _writes: bool
    _zeroes: bool
    _waiting: deque[Operation]
    _executing: list[Operation | None]
    _free: list[int]
    _done: list[Operation]
    _others: int
    _watching: bool
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
        self._memory = ram.bytes  # which must stay where it is
        self._base = address_of(ram.bytes)
        self._direct = image.cache.direct
        self._zeroes = not image.edges
        self._learn()
        self._waiting = deque()
        # By tag; the first is the watch's, for which there must be room too.
        self._executing = [None] * entries
        self._free = list(range(entries - 1, _WATCH, -1))
        self._done = []
        self._others = 0  # how many operations the threads have
        self._watching = False
        self._stopped = False
        iovecs = array("Q", bytes(16 * IOVECS))
        self._iovecs = memoryview(iovecs)
        self._iovecs_at = iovecs.buffer_info()[0]
        self._iovecs_used = 0

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        suits = self._suits
        others = []
        for operation in operations:
            if suits(operation):
                self._waiting.append(operation)
            else:
                others.append(operation)
        if others:
            self._delegate(others)
        self._start()

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        # Kept here until nothing can raise any more.
        done, ring = self._done, self._ring
        operation: Operation
        count = ring.completed()
        now = time.monotonic_ns() if count else 0
        for _ in range(count):
            tag = ring.take()
            if tag == _WATCH:
                self._watching = False
                continue
            operation = self._finish(tag)
            result = ring.result
            ranged = operation.kind >= VIRTIO_BLK_T_DISCARD
            if result >= 0:
                operation.moved = operation.length if ranged else result
            elif self._elsewhere(-result, ranged):
                self._delegate((operation,))
                continue
            else:
                operation.error = -result
            operation.finished_ns = now
            done.append(operation)
        others = self._others
        if others and not self._watching:
            finished = self._threads.completions()
            self._others -= len(finished)
            done += finished
            self._learn()
        if others or self._waiting or ring.pending:
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
        left = len(self._done) + len(self._waiting) + self._under_way()
        assert not left, "completions were left behind"
        self._threads.close()
        # Mappings can be closed once nobody looks at them.
        self._memory = NO_BYTES
        self._ring.close()

    def _delegate(self, operations: Sequence[Operation]) -> None:
        """Let threads execute ``operations``."""
        self._others += len(operations)
        self._threads.submit(operations)

    def _under_way(self) -> int:
        """How many operations the ring has."""
        return len(self._executing) - 1 - len(self._free)

    def _finish(self, tag: int) -> Operation:
        """The operation that ``tag`` was for; the tag is free again."""
        operation = self._executing[tag]
        assert operation is not None, "the kernel completes what was submitted, once"
        self._executing[tag] = None
        self._free.append(tag)
        return operation

    def _elsewhere(self, error: int, ranged: bool) -> bool:
        """Is what failed in the ring to be tried by a thread?"""
        if error in (errno.EINTR, errno.EAGAIN):
            return True
        return error in REFUSALS if ranged else error == errno.EINVAL and self._direct

    def _learn(self) -> None:
        """What O_DIRECT wants, as far as it is known by now."""
        alignment = self._image.alignment
        self._unaligned = alignment - 1
        self._writes = not self._direct or alignment <= SECTOR_SIZE

    def _suits(self, operation: Operation) -> bool:
        """Is ``operation`` one for the ring?"""
        if operation.kind == VIRTIO_BLK_T_FLUSH:
            return self._direct and not self._image.readonly
        if operation.kind >= VIRTIO_BLK_T_DISCARD:
            return self._mode(operation) != 0
        if not self._direct:
            return operation.kind == VIRTIO_BLK_T_IN or not operation.durable
        if operation.kind != VIRTIO_BLK_T_IN and not self._writes:
            return False
        offsets, lengths, base = operation.offsets, operation.lengths, self._base
        bits = operation.offset
        for index in range(operation.first, operation.last):
            bits |= (base + offsets[index]) | lengths[index]
        return not bits & self._unaligned

    def _mode(self, operation: Operation) -> int:
        """How fallocate executes a DISCARD or WRITE_ZEROES; 0: the ring cannot."""
        discard = operation.kind == VIRTIO_BLK_T_DISCARD
        if not discard and (operation.durable or not self._zeroes):
            return 0
        return self._image.allocation.mode(discard, operation.unmap)

    def _start(self) -> None:
        """Start what is waiting, as far as there is room, and let the ring watch the threads."""
        ring, waiting = self._ring, self._waiting
        if self._stopped and waiting:
            self._delegate(waiting)  # which cancels it
            waiting.clear()
        while waiting and self._free:
            if self._prepare(waiting[0]):
                waiting.popleft()
            elif not self._enter():
                break
        if self._others and not self._watching:
            self._watching = True
            ring.prepare(IORING_OP_POLL_ADD, self._threads.notifier, 0, 0, 0, select.POLLIN, _WATCH)
        while ring.pending and not self._enter():
            if self._under_way() + self._watching > ring.pending:
                return  # there will be a completion, and then another attempt
            time.sleep(_PATIENCE)

    def _prepare(self, operation: Operation) -> bool:
        """Put ``operation`` into the ring; False if no iovecs are left for it."""
        first, count = operation.first, operation.last - operation.first
        kind = operation.kind
        flags = 0
        if kind == VIRTIO_BLK_T_FLUSH:
            opcode, flags = IORING_OP_FSYNC, IORING_FSYNC_DATASYNC
            address = length = 0
        elif kind >= VIRTIO_BLK_T_DISCARD:
            length = self._mode(operation)
            if not length:  # as has become known meanwhile
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
        """The host's address of new iovecs for the segments of ``operation``."""
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
        """Submit what is pending; False if the kernel did not take all of it for now."""
        ring = self._ring
        try:
            ring.submit()
        except OSError:
            # A bug; but whoever resets the device must not wait for these for ever.
            for tag in ring.take_back():
                if tag == _WATCH:
                    self._watching = False
                else:
                    operation = self._finish(tag)
                    operation.error = errno.EIO
                    operation.finished_ns = time.monotonic_ns()
                    self._done.append(operation)
            raise
        if not ring.pending:
            self._iovecs_used = 0
        return not ring.pending
