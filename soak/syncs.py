"""Checks that data was synced before an answer that promises stable storage."""

from pykvm.devices.virtio_blk import EngineKind, Image
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from soak.model import NEVER, Access, Model


class Syncs:
    """Watches the syncs of an image.

    With io_uring and O_DIRECT, the ring makes the syncs, which cannot be watched.
    """

    def __init__(self, model: Model, image: Image, engine: EngineKind) -> None:
        self._model = model
        self._sync = image.sync
        self._last = 0
        self._through = NEVER
        ring = engine is EngineKind.IO_URING and image.cache.direct
        self._seen = image.cache.syncs and not image.readonly and not ring
        image.sync = self._watched  # type: ignore[method-assign]

    def _watched(self) -> int:
        began = self._model.now
        error = self._sync()
        if not error:
            self._last = max(self._last, began)
        return error

    def cache(self, writeback: bool) -> None:
        """The device switched to this mode."""
        if writeback:
            self._through = NEVER
        elif self._through == NEVER:
            self._through = self._model.now

    def check(self, kind: int, access: Access) -> None:
        """Check a successful request. AssertionError if its answer came before its sync."""
        if not self._seen or self._last >= access.issued:
            return
        assert kind != VIRTIO_BLK_T_FLUSH, "a flush was answered without a sync"
        write = kind in (VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES)
        through = access.issued > self._through
        assert not (write and through), "a write was answered without a sync, in write-through"
