"""The file or block device behind a disk: opened, measured, locked, synced.

Raw is the only format and is never guessed: whatever the file holds, the
guest sees those bytes from the first to the last. (A guest can write any
header it likes into its disk, so a format that is guessed is a way out of the
VM.) :attr:`Image.notice` merely says so when the first bytes look like another
format's.
"""

import errno
import os
import stat
from pathlib import Path

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.lock import lock
from pykvm.devices.virtio_blk.options import CacheMode
from pykvm.errors import UsageError

_MAGICS = (
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
)

MAX_TRANSFER = 0x7FFFF000
"""The most bytes that Linux moves by one preadv or pwritev."""


class Image:
    """An open raw image. Owns its descriptor, and with it the lock.

    ``fd`` is open for reading, and for writing unless ``readonly``; ``size``
    is in bytes, a positive multiple of 512; ``path`` as it was given;
    ``max_transfer`` is the most that one system call moves, in bytes;
    ``notice`` is a sentence for the user, or "". ``sync_error`` is the errno
    that the first failed sync left behind, or 0.
    """

    def __init__(
        self,
        path: str | Path,
        readonly: bool = False,
        cache: CacheMode = CacheMode.WRITEBACK,
    ) -> None:
        """Open and lock ``path``; UsageError if it cannot be a disk or is in use."""
        self.path = str(path)
        self.cache = cache
        self.max_transfer = MAX_TRANSFER
        self.readonly = readonly
        self.sync_error = 0
        self.fd = _open(self.path, readonly)
        try:
            self.size = _size(self.path, self.fd)
            lock(self.fd, self.path, readonly)
            self.notice = _notice(self.path, self.fd)
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def capacity(self) -> int:
        """The size in sectors of 512 bytes."""
        return self.size // SECTOR_SIZE

    def sync(self) -> int:
        """Put every completed write on stable storage; an errno, or 0.

        Linux reports a failed write-back once and then calls the lost pages
        clean, so a later fdatasync would claim what is not true. After the
        first failure every sync fails, until the image is opened again.
        """
        if not self.sync_error and not self.readonly and self.cache.syncs:
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                self.sync_error = error.errno or errno.EIO
        return self.sync_error

    def close(self) -> None:
        """Close and unlock the image. Harmless when closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(path: str, readonly: bool) -> int:
    flags = os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR)
    try:
        # Before opening: to open a FIFO or a character device does things already.
        mode = os.stat(path).st_mode
        _check_kind(path, mode)
        if stat.S_ISBLK(mode) and not readonly:
            flags |= os.O_EXCL  # the kernel refuses a device that is mounted
        fd = os.open(path, flags | os.O_NONBLOCK)
    except ValueError:
        raise UsageError(f"{path!r} is not a file name") from None
    except OSError as error:
        raise _open_error(path, readonly, error) from None
    try:
        _check_kind(path, os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_error(path: str, readonly: bool, error: OSError) -> UsageError:
    hints = {errno.ENOENT: "create it first, for example with truncate -s 1G"}
    if not readonly:
        hints[errno.EACCES] = hints[errno.EPERM] = "change its mode, or give it readonly=on"
        hints[errno.EROFS] = "give it readonly=on"
        hints[errno.EBUSY] = "it is mounted or claimed: free it, or give it readonly=on"
    reason = os.strerror(error.errno or 0).lower()
    hint = hints.get(error.errno or 0, "")
    return UsageError(f"the disk image {path} cannot be opened: {reason}", hint)


def _check_kind(path: str, mode: int) -> None:
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISSOCK, "a socket"),
    )
    kind = next((name for check, name in kinds if check(mode)), "something else")
    raise UsageError(
        f"{path} is {kind} and cannot be a disk", "give a raw image file or a block device"
    )


def _size(path: str, fd: int) -> int:
    size = os.lseek(fd, 0, os.SEEK_END)
    if size == 0:
        raise UsageError(
            f"the disk image {path} is empty", f"give it a size: truncate -s 1G {path}"
        )
    if size % SECTOR_SIZE:
        raise UsageError(
            f"the size of the disk image {path}, {size} bytes, is not a multiple of {SECTOR_SIZE}",
            f"if it is a raw image, pad it: truncate -s %{SECTOR_SIZE} {path}",
        )
    return size


def _notice(path: str, fd: int) -> str:
    try:
        start = os.pread(fd, 8, 0)
    except OSError:
        return ""  # the guest will be told when it reads these sectors
    for magic, name in _MAGICS:
        if start.startswith(magic):
            return f"{path} begins like a {name} image; the guest sees it as it is, raw"
    return ""
