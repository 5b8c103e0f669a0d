"""The file or block device behind a disk: opened, measured, locked, synced.

Raw is the only format: the guest sees the file's bytes from the first to the
last. (A guest can write any header into its disk, so a device that trusts a
header opens a way out of the VM.) An image that begins like one of another
format is refused, unless its user asks for ``format=raw``.
"""

import errno
import mmap
import os
import stat
import threading
from pathlib import Path
from typing import Final

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.image.allocation import Allocation
from pykvm.devices.virtio_blk.image.formats import HEAD, advice, compression_of, format_of
from pykvm.devices.virtio_blk.image.host_limits import (
    DirectAlignment,
    direct_alignment,
    host_blocks,
    max_transfer,
    write_protected,
)
from pykvm.devices.virtio_blk.image.lock import lock
from pykvm.devices.virtio_blk.modes import CacheMode, ImageFormat, Locking
from pykvm.errors import UsageError, reason_of

MAX_SIZE: Final = (1 << 63) - 4096
"""The most bytes of a file whose size is a multiple of every alignment."""


class Image:
    """An open raw image. Owns its descriptor, and with it the lock.

    - ``path``: as it was given.
    - ``fd``: open for reading, and for writing unless ``readonly``.
    - ``size``: bytes, a positive multiple of 512. The last ``padding`` of them
      are zeros behind the end of a read-only file.
    - ``max_transfer``: the most bytes that one system call moves.
    - ``alignment``: bytes. The disk offset of a transfer, and the address and
      length of each segment, must be multiples of it. 1 unless the cache mode
      asks for O_DIRECT. :mod:`pykvm.devices.virtio_blk.engines.direct` raises it
      when the host refuses a transfer.
    - ``blocks``: the host's block sizes. ``allocation``: frees or zeroes space.
    - ``room``: the folder in which the guest's writes take space; "" if they
      take it where the image is.
    - ``notices``: sentences for the user.
    - ``sync_error``: the errno of the failed sync after which no sync succeeds, or 0.

    A write of a part of an aligned block has to read the rest of the block and
    write it back. If that can happen, all writes hold ``edge_lock``. If it can
    happen later (``edges``), operations that write zeroes hold it, because they
    need not cover whole blocks.
    """

    def __init__(
        self,
        path: str | Path,
        readonly: bool = False,
        cache: CacheMode = CacheMode.WRITEBACK,
        format: ImageFormat | None = None,
        locking: Locking = Locking.AUTO,
    ) -> None:
        """Open and lock ``path``; UsageError if it cannot be a disk or is in use.

        Without a ``format``, UsageError too if it begins like an image of another format.
        """
        self.path = str(path)
        self.cache = cache
        self.readonly = readonly
        self.room = ""
        self.sync_error = 0
        self.edge_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self.fd = _open(self.path, readonly, cache)
        try:
            self._device = stat.S_ISBLK(os.fstat(self.fd).st_mode)
            self.alignment, self._certain = _alignment(self.path, self.fd, cache)
            seen = "" if format else _check_format(self.path, self.fd, self.alignment)
            self.size, self.padding = _size(self.path, self.fd, self.alignment, cache, readonly)
            self.max_transfer = max_transfer(self.fd)
            self.blocks = host_blocks(self.fd)
            self.allocation = Allocation(self.fd)
            padded = _padded(self.path, self.size, self.padding)
            unlocked = lock(self.fd, self.path, readonly, locking)
            self.notices = [*filter(None, (seen, padded, unlocked))]
        except OSError as error:  # the server is gone, or the disk's medium
            os.close(self.fd)
            raise UsageError(
                f"the disk image {self.path} cannot be used: {reason_of(error)}"
            ) from None
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def capacity(self) -> int:
        """The size in sectors of 512 bytes."""
        return self.size // SECTOR_SIZE

    @property
    def edges(self) -> bool:
        """True if blocks are larger than a sector, or may turn out to be."""
        return self.alignment > SECTOR_SIZE or not self._certain

    def sync(self) -> int:
        """Put every completed write on stable storage; an errno, or 0. From any thread.

        Linux reports a failed write-back once and then treats the lost pages as
        clean, so a later fdatasync would succeed although data are lost.
        Therefore every sync after the first failure fails, with EIO, until the
        image is opened again. It does not fail with the first errno: after
        ENOSPC, free space does not bring the pages back.

        O_DIRECT leaves no data in pages: a write whose data are lost has failed.
        There fdatasync flushes the disk's cache and the filesystem's metadata,
        and both may recover. So with O_DIRECT the result of each sync counts
        separately (as in QEMU).
        """
        if self.readonly or not self.cache.syncs:
            return 0
        # The kernel would tell only one of two at once, and the other caller would go on.
        with self._sync_lock:
            if self.sync_error:
                return errno.EIO
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                failed = error.errno or errno.EIO
                if not self.cache.direct:
                    self.sync_error = failed
                return failed
            return 0

    def cause(self, error: int, end: int) -> int:
        """The errno to report for an operation that failed with ``error`` and ends at byte ``end``.

        Linux answers ENOSPC to a write behind the end of a block device. The
        device has shrunk then, and free space would not help. So the errno is
        EIO, as for a file that was truncated.
        """
        if error == errno.ENOSPC and self._device and end > os.lseek(self.fd, 0, os.SEEK_END):
            return errno.EIO
        return error

    def resize(self, size: int, block: int = SECTOR_SIZE) -> None:
        """Give the file ``size`` bytes, whole blocks, or check a block device for it. UsageError.

        Added bytes read as zeros. The caller makes sure that no operation
        beyond the smaller size is in flight.
        """
        if self.readonly:
            raise UsageError(f"the disk image {self.path} is read-only and keeps its size")
        unit = max(block, self.alignment)
        if size % unit or not 0 < size <= MAX_SIZE:
            raise UsageError(
                f"the disk image {self.path} cannot have {size} bytes",
                f"give a multiple of {unit} from {unit} to {MAX_SIZE}",
            )
        try:
            if self._device:
                _check_device_size(self.path, self.fd, size)
            else:
                self._truncate(size)
        except OSError as error:
            raise UsageError(
                f"the disk image {self.path} cannot have {size} bytes: {reason_of(error)}"
            ) from None
        self.size = size

    def _truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def close(self) -> None:
        """Close and unlock the image. Harmless when closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(path: str, readonly: bool, cache: CacheMode) -> int:
    flags = os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR)
    if cache.direct:
        flags |= os.O_DIRECT
    try:
        # Before opening, because opening a FIFO or a character device has effects.
        mode = os.stat(path).st_mode
        _check_kind(path, mode)
        if stat.S_ISBLK(mode) and not readonly:
            flags |= os.O_EXCL  # the kernel refuses a device that is mounted
        fd = os.open(path, flags | os.O_NONBLOCK)
    except ValueError:
        raise UsageError(f"{path!r} is not a file name") from None
    except OSError as error:
        if cache.direct and error.errno == errno.EINVAL:
            raise _no_direct(path, cache) from None
        raise _open_error(path, readonly, error) from None
    try:
        _check_kind(path, os.fstat(fd).st_mode)
        # O_NONBLOCK is for opening only: with it, io_uring fails with EAGAIN instead of waiting.
        os.set_blocking(fd, True)
        if not readonly and write_protected(fd):
            raise UsageError(
                f"the block device {path} is read-only on this host and cannot be written",
                "give it readonly=on or snapshot=on, or make it writable: blockdev --setrw",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_error(path: str, readonly: bool, error: OSError) -> UsageError:
    other = "give it readonly=on or snapshot=on"
    hints = {
        errno.ENOENT: "check its path" if readonly else f"create it first: truncate -s 64M {path}",
        errno.ELOOP: "a symbolic link leads back to itself",
        errno.ENXIO: "the device does not exist, or has no medium",
        errno.ENOMEDIUM: "insert a medium",
        errno.EACCES: "change its mode or its folder's, or run as a user who may read it",
    }
    if os.path.islink(path):
        hints[errno.ENOENT] = f"it is a symbolic link to {os.readlink(path)}, which does not exist"
    if not readonly:
        hints[errno.EROFS] = other
        hints[errno.EPERM] = f"it is immutable or append-only (lsattr), so {other}"
        hints[errno.ETXTBSY] = f"it is a program that is running, so {other}"
        hints[errno.EBUSY] = "it is mounted or in use: free it, or give it readonly=on"
        if error.errno == errno.EACCES and os.access(path, os.R_OK, effective_ids=True):
            hints[errno.EACCES] = f"change its mode, or {other}"
    hint = hints.get(error.errno or 0, "")
    return UsageError(f"the disk image {path} cannot be opened: {reason_of(error)}", hint)


def _no_direct(path: str, cache: CacheMode) -> UsageError:
    return UsageError(
        f"the disk image {path} cannot have cache={cache.value}: "
        "its filesystem does not support O_DIRECT",
        f"use cache={_buffered(cache)}, or put the image on another filesystem",
    )


def _buffered(cache: CacheMode) -> str:
    """The mode that treats writes like ``cache`` does, but uses the host's page cache."""
    mode = CacheMode.WRITEBACK if cache.writeback else CacheMode.WRITETHROUGH
    return mode.value


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


def _check_format(path: str, fd: int, alignment: int) -> str:
    """A sentence for the user, or ""; UsageError."""
    with mmap.mmap(-1, max(alignment, HEAD)) as page:
        try:
            got = os.preadv(fd, (page,), 0)
        except OSError:
            return ""  # the guest gets the error when it reads these sectors
        head = page[:got]
    if name := format_of(head):
        raise UsageError(
            f"{path} begins like a {name} image, and only raw images can be disks",
            advice(name, path),
        )
    if name := compression_of(head):
        return f"{path} begins like {name} data: the guest sees the compressed bytes"
    return ""


def _size(path: str, fd: int, alignment: int, cache: CacheMode, readonly: bool) -> tuple[int, int]:
    """The bytes of the disk, and the number of them behind the end of the file; UsageError."""
    size = os.lseek(fd, 0, os.SEEK_END)
    if size == 0:
        if stat.S_ISBLK(os.fstat(fd).st_mode):
            raise UsageError(
                f"the block device {path} is empty", "give it a medium or a backing file first"
            )
        raise UsageError(
            f"the disk image {path} is empty", f"give it a size: truncate -s 64M {path}"
        )
    if readonly:
        padding = -size % SECTOR_SIZE
        return size + padding, padding
    if size % SECTOR_SIZE:
        raise UsageError(
            f"the size of the disk image {path}, {size} bytes, is not a multiple of {SECTOR_SIZE}",
            f"give it readonly=on or snapshot=on, or pad it: truncate -s %{SECTOR_SIZE} {path}",
        )
    if size % alignment:
        raise UsageError(
            f"the disk image {path} cannot have cache={cache.value}: its size, {size} bytes, "
            f"is not a multiple of the host's blocks of {alignment} bytes",
            f"use cache={_buffered(cache)}, or pad it: truncate -s %{alignment} {path}",
        )
    return size, 0


def _padded(path: str, size: int, padding: int) -> str:
    if not padding:
        return ""
    return (
        f"{path} has {size - padding} bytes, which is not a multiple of {SECTOR_SIZE}: "
        f"the guest sees {padding} more, which are zeros"
    )


def _check_device_size(path: str, fd: int, size: int) -> None:
    actual = os.lseek(fd, 0, os.SEEK_END)
    if size != actual:
        raise UsageError(
            f"the block device {path} has {actual} bytes and not {size}",
            "resize it with its own tools first, then tell the guest the new size",
        )


def _alignment(path: str, fd: int, cache: CacheMode) -> DirectAlignment:
    if not cache.direct:
        return DirectAlignment(1, True)
    alignment = direct_alignment(fd)
    if not alignment.size:
        raise _no_direct(path, cache)
    return alignment
