"""The write cache of a disk, as its driver sees and switches it (virtio 1.2 §5.2.5.2, §5.2.6.2)."""

from collections.abc import Callable

from pykvm.devices.virtio_blk.config_space import ConfigSpace
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_FLUSH
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.serving.io_thread_group import Halt, IoThreadGroup


class WriteCache:
    """The present cache mode, which a reset returns to that of the image.

    ``writeback``: writes may complete before they are on stable storage.
    """

    writeback: bool

    def __init__(
        self, image: Image, config: ConfigSpace, threads: IoThreadGroup, over: Callable[[], bool]
    ) -> None:
        """``over()``: the run has ended, so a switch waits for no operation any more."""
        self._image = image
        self._config = config
        self._threads = threads
        self._over = over
        self.reset()

    def reset(self) -> None:
        """Forget the driver."""
        self._flushes = False
        self._set(self._image.cache.writeback)

    def negotiated(self, features: int) -> None:
        """The driver has accepted ``features``. Without flushes it begins in write-through."""
        self._flushes = bool(features & VIRTIO_BLK_F_FLUSH)
        if not self._flushes:
            self._set(False)

    @property
    def writes_through(self) -> bool:
        """True if the driver may take each completed write for stable.

        A driver that cannot flush has no other way to get it there.
        """
        return not (self._flushes and self.writeback)

    def durable(self) -> bool:
        """True if a write completes only when it is on stable storage."""
        return self.writes_through and self._image.cache.syncs

    def switch(self, writeback: bool) -> None:
        """Obey the driver's write to ``writeback``.

        A driver that switches to write-through need not flush again. So the switch puts all
        earlier writes on stable storage. If that fails, the cache stays write-back, as the driver
        can read there.
        """
        if writeback or not self.writeback:
            self._set(writeback)
            return
        # The sync covers the requests before the switch. Those after it are durable.
        self._threads.quieten(Halt.CACHE, self._over)
        try:
            if not self._image.sync():
                self._set(False)
        finally:
            self._threads.resume(Halt.CACHE)

    def load(self, writeback: bool) -> None:
        """Go on in the mode of a snapshot, which the driver has chosen."""
        self._set(writeback)

    def _set(self, writeback: bool) -> None:
        self.writeback = writeback
        self._config.set("writeback", writeback)
