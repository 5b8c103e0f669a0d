"""Changes of a disk's size while its device lives."""

import threading
from collections.abc import Callable

from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.serving.io_thread_group import Halt, IoThreadGroup
from pykvm.errors import UsageError


class Resizing:
    """Changes the size of an image whose queues ``threads`` serve, one change at a time.

    ``lock`` is held by all calls of the owner that use or replace the image's files.
    """

    def __init__(
        self, image: Image, block: int, threads: IoThreadGroup, changed: Callable[[], None]
    ) -> None:
        """A size is a multiple of ``block`` bytes. ``changed()`` is called after each change."""
        self._image = image
        self._block = block
        self._threads = threads
        self._changed = changed
        # Held throughout a change, which may take long. Only the owner's calls wait.
        self.lock = threading.Lock()

    def resize(self, size: int) -> None:
        """See VirtioBlk.resize()."""
        with self.lock:
            shrinks = size < self._image.size
            if shrinks and not self._threads.halt_if_quiet(Halt.RESIZE):
                raise UsageError(
                    f"the disk {self._image.path} cannot shrink while its guest runs",
                    "stop the guest, shrink the disk, and resume the guest",
                )
            try:
                self._image.resize(size, self._block)
                self._changed()
            finally:
                if shrinks:
                    self._threads.resume(Halt.RESIZE)

    def close(self) -> None:
        """Close the image, after a change that is being made."""
        with self.lock:
            self._image.close()
