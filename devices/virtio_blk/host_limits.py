"""What the host asks of one transfer: its alignment, and how large it may be."""

import errno
import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE

MAX_TRANSFER = 0x7FFFF000
"""The most bytes that Linux moves by one preadv or pwritev."""

# ioctls of block devices (linux/fs.h).
_BLKSECTGET = 0x1267
_BLKSSZGET = 0x1268


def max_transfer(fd: int) -> int:
    """The most bytes for one transfer: for a block device what it takes in one piece."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return MAX_TRANSFER
    (sectors,) = struct.unpack("H", fcntl.ioctl(fd, _BLKSECTGET, bytes(2)))
    block = _block_size(fd)
    return max(int(sectors) * SECTOR_SIZE // block, 1) * block


def direct_alignment(fd: int) -> int:
    """What O_DIRECT wants offsets, lengths and addresses to be multiples of; 0: it does not work.

    For a block device its logical block size. A file is asked by reading: the
    smallest power of 2 that succeeds. But a hole, such as the whole of a new
    image, reads with any alignment and is not written with any; so it is never
    less than the logical block of the device that holds the filesystem.
    (Memory may be aligned to less on some kernels; a guest's buffers rarely are.)
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return _block_size(fd)
    below = _block_size_below(status.st_dev)
    alignment = SECTOR_SIZE
    while alignment <= mmap.PAGESIZE:
        if alignment >= below and _reads(fd, alignment):
            return alignment
        alignment *= 2
    return 0


def _reads(fd: int, alignment: int) -> bool:
    # Twice as long, to have an address that is aligned to no more than this.
    with mmap.mmap(-1, 2 * alignment) as buffer, memoryview(buffer) as view:
        try:
            os.preadv(fd, (view[alignment:],), 0)
        except OSError as error:
            # The guest will be told of any other error when it reads these sectors.
            return error.errno != errno.EINVAL
        return True


def _block_size(fd: int) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(size)


def _block_size_below(device: int) -> int:
    """The logical block size of a filesystem's device, by its number; 0 if nobody knows."""
    number = f"{os.major(device)}:{os.minor(device)}"
    folder = Path("/sys/dev/block", number).resolve()
    for owner in (folder, folder.parent):  # a partition has no queue of its own
        try:
            return int(owner.joinpath("queue/logical_block_size").read_text())
        except (OSError, ValueError):
            continue
    return 0
