"""Reads and writes that bypass the host's page cache (O_DIRECT) and so must be aligned.

Aligned data moves directly between guest RAM and the disk. Other data moves
through a bounce buffer, block by block. A write that begins or ends inside a
block first reads the rest of that block, and writes it back::

    disk     │ block │ block │ block │
    write        ▐███████████▌
    read     ├───────┤       ├───────┤
    written  ├───────────────────────┤

If the size of these blocks is not certain, the host may refuse a transfer that
seemed to be aligned: EINVAL. Then larger blocks are tried.
"""

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.memory.guest import address_of
from pykvm.memory.ram import Ram

BOUNCE_SIZE = 1 << 20

_MovePiece = Callable[[memoryview, list[memoryview], int, int, int], int]
_Job = TypeVar("_Job")


class DirectIo:
    """Moves data between guest RAM and an image that is open with O_DIRECT. One thread uses it.

    ``bounced`` counts the operations that went through the buffer.
    """

    def __init__(self, image: Image, ram: Ram) -> None:
        self.bounced = 0
        self._image = image
        self._fd = image.fd
        self._bytes = ram.bytes
        self._address = address_of(ram.bytes)
        self._block = image.alignment
        self._buffer: memoryview | None = None

    def move(self, operation: Operation) -> int:
        """Execute an IN or OUT; returns the bytes moved, like preadv and pwritev. OSError."""
        writes = operation.kind == VIRTIO_BLK_T_OUT
        return self._aligning(self._move_out if writes else self._move_in, operation)

    def write(self, data: memoryview, offset: int) -> int:
        """Write page-aligned ``data`` at byte ``offset``; returns the bytes written. OSError."""
        return self._aligning(self._write_data, (data, offset))

    def close(self) -> None:
        """Free the bounce buffer."""
        self._buffer = None  # its last view unmaps it

    def _aligning(self, attempt: Callable[[_Job], int], job: _Job) -> int:
        """``attempt(job)``; while the host answers EINVAL, again with larger blocks. OSError."""
        image = self._image
        self._block = known = max(self._block, image.alignment)
        while True:
            try:
                moved = attempt(job)
            except OSError as error:
                if error.errno != errno.EINVAL or self._block >= mmap.PAGESIZE:
                    self._block = known
                    raise
                self._block *= 2
            else:
                if self._block > image.alignment:
                    with image.edge_lock:  # two threads may find a size at once: the larger counts
                        image.alignment = max(self._block, image.alignment)
                return moved

    def _move_in(self, operation: Operation) -> int:
        if self._aligned(operation):
            return os.preadv(self._fd, operation.views(self._bytes), operation.offset)
        return self._bounce(self._read, operation.views(self._bytes), operation.offset)

    def _move_out(self, operation: Operation) -> int:
        with self._writing:
            if self._aligned(operation):
                return os.pwritev(self._fd, operation.views(self._bytes), operation.offset)
            return self._bounce(self._write, operation.views(self._bytes), operation.offset)

    def _write_data(self, job: tuple[memoryview, int]) -> int:
        data, offset = job
        with self._writing:
            if not (offset | len(data)) & (self._block - 1):
                return os.pwrite(self._fd, data, offset)
            return self._bounce(self._write, [data], offset)

    @property
    def _writing(self) -> AbstractContextManager[object]:
        # A driver moves whole sectors, so a block of one sector has no edges.
        return self._image.edge_lock if self._block > SECTOR_SIZE else nullcontext()

    def _aligned(self, operation: Operation) -> bool:
        offsets, lengths, base = operation.offsets, operation.lengths, self._address
        bits = operation.offset
        for index in range(operation.first, operation.last):
            bits |= (base + offsets[index]) | lengths[index]
        return not bits & (self._block - 1)

    def _bounce(self, move_piece: _MovePiece, segments: list[memoryview], offset: int) -> int:
        """Move ``segments`` in pieces of the buffer's size, until one moves less than wanted."""
        self.bounced += 1
        if self._buffer is None:
            self._buffer = memoryview(mmap.mmap(-1, max(BOUNCE_SIZE, self._block)))
        buffer = self._buffer
        length = sum(map(len, segments))
        segments.reverse()
        moved = 0
        while moved < length:
            at = offset + moved
            head = at % self._block
            wanted = min(length - moved, len(buffer) - head)
            done = move_piece(buffer, segments, at - head, head, wanted)
            moved += done
            if done < wanted:
                break
        return moved

    def _read(
        self, buffer: memoryview, segments: list[memoryview], start: int, head: int, wanted: int
    ) -> int:
        """Read ``wanted`` bytes, ``head`` bytes into the block at ``start``; the bytes read."""
        got = os.preadv(self._fd, (buffer[: self._up(head + wanted)],), start)
        done = min(max(got - head, 0), wanted)
        for part in _cut(segments, done):
            part[:] = buffer[head : head + len(part)]
            head += len(part)
        return done

    def _write(
        self, buffer: memoryview, segments: list[memoryview], start: int, head: int, wanted: int
    ) -> int:
        """Write ``wanted`` bytes, ``head`` bytes into the block at ``start``; the bytes written."""
        block = self._block
        end = head + wanted
        span = self._up(end)
        if start + span > self._image.size:
            # The image was accepted when its blocks seemed smaller.
            raise OSError(errno.EINVAL, "writing the whole last block would make the file larger")
        if head:
            self._read_block(buffer[:block], start)
        if end < span and not (head and span == block):
            self._read_block(buffer[span - block : span], start + span - block)
        at = head
        for part in _cut(segments, wanted):
            buffer[at : at + len(part)] = part
            at += len(part)
        return min(max(os.pwritev(self._fd, (buffer[:span],), start) - head, 0), wanted)

    def _read_block(self, into: memoryview, start: int) -> None:
        got = os.preadv(self._fd, (into,), start)
        # Bytes are missing only if the file was truncated: then they are zeros.
        into[got:] = bytes(len(into) - got)

    def _up(self, length: int) -> int:
        return -(-length // self._block) * self._block


def _cut(segments: list[memoryview], length: int) -> Iterator[memoryview]:
    """Take ``length`` bytes off ``segments``, which are in reverse order."""
    while length:
        segment = segments.pop()
        if len(segment) > length:
            segments.append(segment[length:])
            segment = segment[:length]
        length -= len(segment)
        yield segment
