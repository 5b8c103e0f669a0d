"""Asks the host for a file's limits: alignment, largest transfer, block sizes."""

import errno
import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE

MAX_TRANSFER = 0x7FFFF000
"""The most bytes that Linux moves by one preadv or pwritev."""

# ioctls of block devices (linux/fs.h).
_BLKROGET = 0x125E
_BLKSECTGET = 0x1267
_BLKSSZGET = 0x1268
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKALIGNOFF = 0x127A
_BLKPBSZGET = 0x127B

# statx (linux/stat.h, linux/fcntl.h), and its number on x86-64.
_NR_STATX = 332
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_DIO_READ_ALIGN = 0x20000
_STATX_SIZE = 256
_STX_DIO_MEM_ALIGN = 0x98  # and stx_dio_offset_align behind it
_STX_DIO_READ_OFFSET_ALIGN = 0xB4


class HostBlocks(NamedTuple):
    """The block sizes of a file or block device, in bytes; 0: unknown.

    The ``logical`` and the ``physical`` block, the offset of the first
    ``aligned`` physical block, the ``minimum`` and the ``optimal`` transfer,
    and the ``granularity`` in which space is freed.
    """

    logical: int
    physical: int
    aligned: int
    minimum: int
    optimal: int
    granularity: int


def host_blocks(fd: int) -> HostBlocks:
    """The host's answers for a block device; for a file, the unit of its filesystem's space."""
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode):
        return HostBlocks(SECTOR_SIZE, 0, 0, 0, 0, status.st_blksize)
    asked = (_BLKPBSZGET, _BLKALIGNOFF, _BLKIOMIN, _BLKIOOPT)
    physical, aligned, minimum, optimal = (max(_get_int(fd, request), 0) for request in asked)
    granularity = _queue_limit(status.st_rdev, "discard_granularity")
    return HostBlocks(block_size(fd), physical, aligned, minimum, optimal, granularity)


def write_protected(fd: int) -> bool:
    """True if the host refuses writes to this block device, although it opens it for writing.

    Written data can stay in the page cache then and never reach the device.
    """
    return stat.S_ISBLK(os.fstat(fd).st_mode) and _get_int(fd, _BLKROGET) != 0


def max_transfer(fd: int) -> int:
    """The most bytes for one transfer; a block device takes them as one request."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return MAX_TRANSFER
    (sectors,) = struct.unpack("H", fcntl.ioctl(fd, _BLKSECTGET, bytes(2)))
    block = block_size(fd)
    return max(int(sectors) * SECTOR_SIZE // block, 1) * block


class DirectAlignment(NamedTuple):
    """The alignment that O_DIRECT requires of offsets, lengths and addresses.

    ``size`` is in bytes, or 0 if O_DIRECT does not work. ``certain``: the host
    stated it. Otherwise reading found it, and it may turn out to be larger.
    """

    size: int
    certain: bool


def direct_alignment(fd: int) -> DirectAlignment:
    """The alignment that O_DIRECT requires for the file or block device at ``fd``.

    For a block device, it is the logical block size. For a file, Linux states it
    from 6.1 on (STATX_DIOALIGN), on many filesystems. Elsewhere, reading finds
    it: the smallest power of 2 that succeeds. A hole, such as the whole of a
    new image, can be read with any alignment but not written with any. So the
    attempts read data, if there are any. The result is at least the logical
    block of the device that holds the filesystem, if there is exactly one.
    (Some kernels accept a smaller alignment in memory; guests' buffers rarely need that.)
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return DirectAlignment(block_size(fd), True)
    if told := _told_alignment(fd):
        return told
    below = _queue_limit(status.st_dev, "logical_block_size")
    try:
        data = os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:
        data = 0  # the file is one hole, or its filesystem cannot tell
    alignment = SECTOR_SIZE
    while alignment <= mmap.PAGESIZE:
        if alignment >= below and _reads(fd, alignment, data):
            return DirectAlignment(alignment, below > 0)
        alignment *= 2
    return DirectAlignment(0, True)


def _told_alignment(fd: int) -> DirectAlignment | None:
    """The alignment that the kernel states for a file; None if it states none.

    From 6.14 on, it may state a smaller one for reading (STATX_DIO_READ_ALIGN).
    XFS does this for files that share blocks with others. It accepts writes of
    the smaller alignment too, but copies blocks for them. So the smaller one counts.
    """
    # Imported here because only the cache modes with O_DIRECT need it.
    from pykvm.host.libc import system_call

    answer = bytearray(_STATX_SIZE)
    try:
        wanted = _STATX_DIOALIGN | _STATX_DIO_READ_ALIGN
        system_call(_NR_STATX, fd, b"\0", _AT_EMPTY_PATH, wanted, answer)
    except OSError:
        return None
    (mask,) = struct.unpack_from("I", answer)
    memory, offset = struct.unpack_from("II", answer, _STX_DIO_MEM_ALIGN)
    # 0: O_DIRECT on this file goes through the page cache (journalled data, …).
    if not (mask & _STATX_DIOALIGN and offset):
        return None
    (reading,) = struct.unpack_from("I", answer, _STX_DIO_READ_OFFSET_ALIGN)
    if not (mask & _STATX_DIO_READ_ALIGN and reading):
        reading = offset
    return DirectAlignment(max(memory, reading, SECTOR_SIZE), reading >= offset)


def _reads(fd: int, alignment: int, data: int) -> bool:
    """True if O_DIRECT reads ``alignment`` bytes that have exactly this alignment.

    ``data`` is where the file's first data begin.
    """
    # The first offset in or behind the data that is no multiple of twice the alignment.
    place = (data + alignment - 1) // (2 * alignment) * (2 * alignment) + alignment
    if place + alignment > os.fstat(fd).st_size:
        place = 0
    # Twice as long, for an address that is no multiple of twice the alignment.
    with mmap.mmap(-1, 2 * alignment) as buffer, memoryview(buffer) as view:
        try:
            os.preadv(fd, (view[alignment:],), place)
        except OSError as error:
            # The guest gets any other error when it reads these sectors.
            return error.errno != errno.EINVAL
        return True


def block_size(fd: int) -> int:
    """The logical block size of a block device."""
    return _get_int(fd, _BLKSSZGET)


def _get_int(fd: int, request: int) -> int:
    (value,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)


def _queue_limit(device: int, name: str) -> int:
    """A limit of a block device's queue, by the device's number; 0 if unknown."""
    number = f"{os.major(device)}:{os.minor(device)}"
    folder = Path("/sys/dev/block", number).resolve()
    for owner in (folder, folder.parent):  # a partition has no queue of its own
        try:
            return int(owner.joinpath("queue", name).read_text())
        except (OSError, ValueError):
            continue
    return 0
