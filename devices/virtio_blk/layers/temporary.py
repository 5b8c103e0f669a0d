"""The temporary files of a snapshot: several, if one file cannot be as large as the disk."""

import errno
import os
import tempfile
from contextlib import ExitStack
from typing import Final

from pykvm.devices.virtio_blk.image.file import MAX_SIZE

MOST_FILES: Final = 64
"""The largest file has 4 GiB on FAT, 4 to 16 TiB on ext4, any size on XFS."""
UNIT: Final = 1 << 20
"""Bytes. The size of each of several files is a multiple of it, so that few requests are cut."""


def folder() -> str:
    """The folder of the temporary files, as in QEMU: ``/tmp`` is in memory on many hosts."""
    return os.environ.get("TMPDIR") or "/var/tmp"


def temporary_files(opened: ExitStack, place: str, size: int) -> tuple[list[int], int]:
    """Descriptors, which ``opened`` closes, of sparse files in ``place`` for a disk of ``size``.

    They have no names. The second result is a size in bytes: file k holds the
    disk's bytes from k times that size on. OSError.
    """
    count = 1
    while True:
        piece = size if count == 1 else -(-size // (count * UNIT)) * UNIT
        try:
            found = [
                temporary_file(opened, place, min(piece, size - start))
                for start in range(0, size, piece)
            ]
        except OSError as error:
            if error.errno != errno.EFBIG or count >= MOST_FILES:
                raise
            count *= 2
        else:
            return found, piece if len(found) > 1 else MAX_SIZE


def temporary_file(opened: ExitStack, place: str, size: int) -> int:
    """A descriptor, which ``opened`` closes, of a sparse file of ``size`` bytes. OSError."""
    file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115
    opened.callback(file.close)
    os.ftruncate(file.fileno(), size)
    return file.fileno()
