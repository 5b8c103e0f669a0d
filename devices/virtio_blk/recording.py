"""A recording of a disk, for its owner: the content at its beginning, and all writes since."""

import os
from pathlib import Path
from typing import Self

from pykvm.devices.virtio_blk import content
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.device import VirtioBlk
from pykvm.devices.virtio_blk.observe.write_log import WriteLog
from pykvm.devices.virtio_blk.serving.recorder import Recorder
from pykvm.errors import HostError, UsageError, reason_of
from pykvm.forms import refused, text
from pykvm.host.write import write_all

_PIECE = 1 << 20


class Recording:
    """Records the writes, flushes and discards of a disk, until it ends. A context manager.

    The content of the disk at the beginning is kept in the host's memory, without its zeros. The
    recording takes it for stable: have the guest sync before. :meth:`Disk.write` is not recorded.
    There is no log if the guest writes more than 1 GiB, is put back, or if the disk is resized.
    """

    def __init__(self, device: VirtioBlk) -> None:
        """Begin. The disk waits for the operations in flight, and while its content is copied.

        UsageError if the disk is being recorded already. HostError.
        """
        self._device = device
        self._base = -1
        self._over = False
        self._recorder = Recorder(
            device.image.size // SECTOR_SIZE, lambda: self._device.writes_through
        )
        with device.image_lock:
            try:
                device.record(self._recorder, self._keep_content)
            except BaseException:
                self._free()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def log(self) -> WriteLog:
        """The log until now, or until the end. UsageError if there is none."""
        return self._recorder.log()

    def mark(self, label: str) -> None:
        """Add a mark to the log: a state after it has ``label`` among its marks. UsageError."""
        if self._over:
            raise UsageError("the recording has ended", "mark it before")
        if not text("label", label).isprintable():
            raise refused("label", label, "give printable text")
        self._recorder.mark(label)

    def end(self) -> None:
        """Record no longer. May be repeated."""
        if not self._over:
            self._over = True
            with self._device.image_lock:
                self._device.record(None)

    def save(self, folder: Path | str) -> None:
        """Write the log until now to the file ``log`` in a new ``folder``, and the content at
        the beginning to the file ``base``. UsageError if they cannot be written.
        """
        from pykvm.devices.virtio_blk.log_file import save

        if self._base < 0:
            raise UsageError("the recording is closed", "save it before")
        log, place = self.log, Path(folder)
        try:
            place.mkdir(parents=True)
            size = os.fstat(self._base).st_size
            with (place / "base").open("xb") as file:
                file.truncate(size)
                for at in range(0, size, _PIECE):
                    _keep(file.fileno(), os.pread(self._base, _PIECE, at), at)
        except OSError as error:
            reason = reason_of(error)
            raise UsageError(f"the recording {folder} cannot be written: {reason}") from None
        save(log, place / "log")

    def close(self) -> None:
        """End the recording, and free the memory of the content. May be repeated."""
        self.end()
        self._free()

    def _free(self) -> None:
        if self._base >= 0:
            os.close(self._base)
            self._base = -1

    def _keep_content(self) -> None:
        image = self._device.image
        try:
            self._base = os.memfd_create("pykvm recording", os.MFD_CLOEXEC)
            os.ftruncate(self._base, image.size)
            for at in range(0, image.size, _PIECE):
                _keep(self._base, content.read(image, at, min(_PIECE, image.size - at)), at)
        except OSError as error:
            raise HostError(f"the host cannot keep the content: {reason_of(error)}") from None


def _keep(fd: int, piece: bytes, at: int) -> None:
    """Write ``piece`` at byte ``at``, where the file has zeros."""
    if piece != bytes(len(piece)):
        os.lseek(fd, at, os.SEEK_SET)
        write_all(fd, piece)
