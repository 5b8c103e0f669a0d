"""Operations without requests, and an engine that a test operates by hand."""

import errno
import os
import select
from array import array
from collections.abc import Sequence

from pykvm.devices.virtio_blk import Image
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram


def operation(kind: int, offset: int = 0, segments: Sequence[tuple[int, int]] = ()) -> Operation:
    made = Operation()
    made.kind = kind
    made.offset = offset
    made.length = sum(length for _, length in segments)
    made.offsets = array("q", [start for start, _ in segments])
    made.lengths = array("q", [length for _, length in segments])
    made.last = len(segments)
    return made


def read(offset: int = 0, length: int = 1024) -> Operation:
    return operation(VIRTIO_BLK_T_IN, offset, [(0, length)])


def write(offset: int = 0, length: int = 1024) -> Operation:
    return operation(VIRTIO_BLK_T_OUT, offset, [(0, length)])


def flush() -> Operation:
    return operation(VIRTIO_BLK_T_FLUSH)


def over(kind: int, offset: int, length: int, unmap: bool = False) -> Operation:
    """A discard operation, or one that writes zeroes."""
    made = operation(kind, offset)
    made.length = length
    made.unmap = unmap
    return made


def readable(fd: int, timeout_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


class ManualEngine:
    """An engine with a notifier. Its operations have no effect, and succeed when told to."""

    def __init__(self, image: Image, ram: Ram) -> None:
        self.notifier = os.eventfd(0, os.EFD_NONBLOCK)
        self.immediate = False
        self.held: list[Operation] = []
        self.done: list[Operation] = []

    def submit(self, operations: Sequence[Operation]) -> None:
        self.held += operations

    def finish(self, error: int = 0) -> None:
        for operation in self.held:
            operation.moved, operation.error = operation.length, error
        self.done += self.held
        self.held.clear()
        os.eventfd_write(self.notifier, 1)

    def completions(self) -> Sequence[Operation]:
        if not readable(self.notifier):
            return ()
        os.eventfd_read(self.notifier)
        done, self.done = self.done, []
        return done

    def watch(self, watch: Watch) -> bool:
        return False

    def stop(self) -> None:
        self.finish(errno.ECANCELED)

    def close(self) -> None:
        os.close(self.notifier)
