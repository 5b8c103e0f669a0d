"""The temporary files of a snapshot: one, or several where none can be as large as the disk."""

import errno
import os
import tempfile
from contextlib import ExitStack
from typing import Final

from pykvm.devices.virtio_blk.image.file import MAX_SIZE

MOST_FILES: Final = 64
"""FAT has files of 4 GiB, ext4 of 4 to 16 TiB, XFS of any size."""
UNIT: Final = 1 << 20
"""Bytes; of several files each is a multiple of it, so that few requests are cut."""


def folder() -> str:
    """Where the temporary files are, as in QEMU: ``/tmp`` is memory on many hosts."""
    return os.environ.get("TMPDIR") or "/var/tmp"


def temporary_files(opened: ExitStack, place: str, size: int) -> tuple[list[int], int]:
    """Descriptors, which ``opened`` closes, of sparse files in ``place`` for a disk of ``size``.

    They have no names. The k-th of them is for the bytes from k times the
    second result on, if there are several. OSError.
    """
    count = 1
    while True:
        piece = size if count == 1 else -(-size // (count * UNIT)) * UNIT
        try:
            found = [
                _file(opened, place, min(piece, size - start)) for start in range(0, size, piece)
            ]
        except OSError as error:
            if error.errno != errno.EFBIG or count >= MOST_FILES:
                raise
            count *= 2
        else:
            return found, piece if len(found) > 1 else MAX_SIZE


def _file(opened: ExitStack, place: str, size: int) -> int:
    file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115
    opened.callback(file.close)
    os.ftruncate(file.fileno(), size)
    return file.fileno()
