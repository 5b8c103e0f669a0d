"""Has the host free the space of a range of an image, or make the range zeros.

==========================  ======================  =================
request                     for a file              for a block device
==========================  ======================  =================
discard                     FS_IOC_UNRESVSP64       BLKDISCARD
zeros, space may be freed   FS_IOC_UNRESVSP64,      BLKZEROOUT
                            else FS_IOC_ZERO_RANGE
zeros                       FS_IOC_ZERO_RANGE       BLKZEROOUT
==========================  ======================  =================

The first two names are fallocate's FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE,
with FALLOC_FL_KEEP_SIZE, as ioctls that Linux has had since 5.5.

A refusal of the host is no error: a discard is only advice, and the engine can
write zeros instead. The result of that write counts then.

=====================  =====================================================================
the host's answer      its meaning
=====================  =====================================================================
EOPNOTSUPP, ENOTTY,    refused: the filesystem, the disk or the kernel does not know the
ENOSYS, ENODEV         request; pykvm does not try it again
EINVAL                 refused for this range: too finely cut for a network or cluster
                       filesystem, or beyond the end of a block device that shrank
EBUSY                  refused for now: another host uses the file, as on some cluster
                       filesystems
EPERM, EACCES,         refused: the file is sealed, immutable or append-only, or the host
ETXTBSY                swaps to it
EREMOTEIO              refused by the disk, which knows the command
any other              an error: of the disk, or a lack of space, because splitting an
                       extent takes space
=====================  =====================================================================
"""

import errno
import fcntl
import os
import stat
from struct import Struct
from typing import Final

from pykvm.devices.virtio_blk.image.host_limits import block_size

# <linux/fs.h>, <linux/falloc.h>
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_FS_IOC_UNRESVSP64 = 0x4030582B
_FS_IOC_ZERO_RANGE = 0x40305839
_RANGE = Struct("QQ")  # start, length
_SPACE_RESV = Struct("hhqqiI16x")  # l_type, l_whence, l_start, l_len, l_sysid, l_pid

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # fallocate's modes

_NEVER: Final = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.ENODEV))
_NOT_THIS: Final = frozenset(
    (errno.EINVAL, errno.EBUSY, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.EREMOTEIO)
)
REFUSALS: Final = _NEVER | _NOT_THIS
"""With these errors the host refuses; with any other it failed."""


class Allocation:
    """The space of an open image. Any thread, several at once.

    A request that the host does not know at all is not tried again.
    """

    def __init__(self, fd: int) -> None:
        """``fd`` stays the caller's, and open."""
        self._fd = fd
        self._block = block_size(fd) if stat.S_ISBLK(os.fstat(fd).st_mode) else 0
        self._refused: set[int] = set()

    @property
    def zeros_free_space(self) -> bool:
        """True if :meth:`zero` can free space."""
        return not self._block

    def discard(self, offset: int, length: int) -> int:
        """Free the space of a range (bytes); an errno, or 0, also if the host refuses.

        The content of the range is undefined afterwards.
        """
        if self._block:
            end = (offset + length) // self._block * self._block
            offset = -(-offset // self._block) * self._block
            length = end - offset
            if length <= 0:
                return 0
        error = self._ask(_BLKDISCARD if self._block else _FS_IOC_UNRESVSP64, offset, length)
        return 0 if error == errno.EOPNOTSUPP else error

    def zero(self, offset: int, length: int, unmap: bool) -> int:
        """Make a range (bytes) zeros, and with ``unmap`` free its space; an errno, or 0.

        EOPNOTSUPP: the host refuses, and the caller writes zeros.
        """
        if not self._block:
            error = self._ask(_FS_IOC_UNRESVSP64, offset, length) if unmap else errno.EOPNOTSUPP
            if error == errno.EOPNOTSUPP:
                error = self._ask(_FS_IOC_ZERO_RANGE, offset, length)
            return error
        if (offset | length) % self._block:
            return errno.EOPNOTSUPP
        return self._ask(_BLKZEROOUT, offset, length)

    def mode(self, discard: bool, unmap: bool) -> int:
        """The mode with which fallocate discards or makes zeros; 0: it cannot, as far as is known.

        A caller of fallocate calls :meth:`discard` or :meth:`zero` for a range for which it
        failed with one of REFUSALS.
        """
        if self._block:
            return 0
        if (discard or unmap) and _FS_IOC_UNRESVSP64 not in self._refused:
            return _PUNCH_HOLE | _KEEP_SIZE
        return 0 if discard or _FS_IOC_ZERO_RANGE in self._refused else _ZERO_RANGE | _KEEP_SIZE

    def _ask(self, request: int, offset: int, length: int) -> int:
        """An ioctl for a range; an errno, or 0. EOPNOTSUPP stands for all of REFUSALS."""
        if request in self._refused:
            return errno.EOPNOTSUPP
        if self._block:
            argument = _RANGE.pack(offset, length)
        else:
            argument = _SPACE_RESV.pack(0, os.SEEK_SET, offset, length, 0, 0)
        while True:
            try:
                fcntl.ioctl(self._fd, request, argument)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in REFUSALS:
                    return error.errno or errno.EIO
                if error.errno in _NEVER:
                    self._refused.add(request)
                return errno.EOPNOTSUPP
            return 0
