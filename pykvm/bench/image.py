"""The measured disk: the user's, or a temporary file full of random bytes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import PykvmError, UsageError, reason_of
from pykvm.host.libc import system_call
from pykvm.host.write import write_all

MIB = 1 << 20
_NR_STATFS = 137
_STATFS_SIZE = 120  # its first word is the filesystem's type
_IN_MEMORY = (0x01021994, 0x858458F6)  # TMPFS_MAGIC and RAMFS_MAGIC of <linux/magic.h>
SIZE_MIN = MIB


@contextmanager
def temporary_disk(folder: Path | None, size: int) -> Iterator[Path]:
    """A file of ``size`` bytes in ``folder`` (default: the folder for temporary files).

    Its contents are random, so that no filesystem stores less than ``size`` bytes. They are on
    stable storage. UsageError if the file cannot be made.
    """
    try:
        handle, name = tempfile.mkstemp(prefix="pykvm-bench-", suffix=".img", dir=folder)
    except OSError as error:
        raise UsageError(
            f"no file can be made in '{folder}': {reason_of(error)}",
            "give --disk a different folder",
        ) from None
    path = Path(name)
    try:
        try:
            _check_room(handle, size, path)
            _fill(handle, size)
        except OSError as error:
            raise UsageError(
                f"the temporary disk '{path}' cannot be written: {reason_of(error)}",
                "give --disk a different folder, or make the disk smaller",
            ) from None
        finally:
            os.close(handle)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _check_room(handle: int, size: int, path: Path) -> None:
    """UsageError if the filesystem has no room: a full one would harm other programs."""
    found = os.fstatvfs(handle)
    room = found.f_bavail * found.f_frsize
    if size > room:
        raise UsageError(
            f"the temporary disk '{path}' would need {size // MIB} MiB, and {room // MIB} are free",
            "give --disk a different folder, or make the disk smaller",
        )


def _fill(handle: int, size: int) -> None:
    left = size
    while left:
        data = os.urandom(min(left, MIB))
        write_all(handle, data)
        left -= len(data)
    os.fsync(handle)


def size_of(path: Path) -> int:
    """The size of a raw image or block device in bytes, in whole blocks of 4096; UsageError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = os.lseek(handle, 0, os.SEEK_END) // 4096 * 4096
        finally:
            os.close(handle)
    except OSError as error:
        raise UsageError(
            f"'{path}' cannot be read: {reason_of(error)}", "check the path of --disk"
        ) from None
    if size < SIZE_MIN:
        raise UsageError(f"'{path}' is smaller than 1 MiB", "give --disk a larger one")
    return size


def check_on_disk(path: Path) -> None:
    """UsageError for a file in memory, which has no disk below it.

    tmpfs accepts O_DIRECT from Linux 6.6 on. Block devices are not checked.
    """
    if not path.is_file():
        return
    answer = bytearray(_STATFS_SIZE)
    system_call(_NR_STATFS, os.fsencode(path) + b"\0", answer)
    if int.from_bytes(answer[:4], "little") in _IN_MEMORY:
        raise UsageError(
            f"'{path}' is in memory (tmpfs), and O_DIRECT there measures no disk",
            "give --disk a folder on a disk, or --cache without O_DIRECT",
        )


def settle(path: Path, size: int, cache: CacheMode) -> None:
    """Write dirty pages of ``path`` back, and read all of it into the page cache, or drop it from
    there if ``cache`` bypasses the page cache. So no measurement pays for the one before.

    ``size`` is in bytes. A disk larger than half of the free memory is not read, because the page
    cache would not hold it. PykvmError if the host cannot do this.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(handle)
            if cache.direct:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
        if not cache.direct and size <= _available_memory() // 2:
            _read_all(path)
    except OSError as error:
        raise PykvmError(f"'{path}' cannot be read again: {reason_of(error)}") from None


def _available_memory() -> int:
    """The memory that the page cache can use, in bytes (MemAvailable of /proc/meminfo)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return 0


def _read_all(path: Path) -> None:
    """Read all of the file into the page cache, so that no tool pays for the first read."""
    with path.open("rb", buffering=0) as file:
        while file.read(8 * MIB):
            pass
