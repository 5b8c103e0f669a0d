"""Fills the last sector of a read-only image whose size is not a multiple of a sector: with zeros.

Only runs with such an image import this module.
"""

from collections.abc import Sequence

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.layers.wrapper import EngineWrapper
from pykvm.hot.words import NO_BYTES
from pykvm.memory.ram import Ram


def padded(engine: EngineFactory) -> EngineFactory:
    """Makes engines like ``engine`` does, but they read zeros behind the end of the file."""

    def make(image: Image, ram: Ram) -> Engine:
        inner = engine(image, ram)
        return PaddedEngine(inner, image, ram) if image.padding else inner

    return make


class PaddedEngine(EngineWrapper):
    """Adds zeros to each read that reaches the end of the file, as it was when it was opened."""

    def __init__(self, inner: Engine, image: Image, ram: Ram) -> None:
        """``inner`` belongs to the new engine."""
        super().__init__(inner)
        self._bytes = ram.bytes
        # The end at opening: a file that was truncated since then is an error, not zeros.
        self._end = image.size - image.padding

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        done = self._inner.completions()
        for operation in done:
            reached = operation.offset + operation.moved
            if operation.kind == VIRTIO_BLK_T_IN and reached >= self._end and not operation.error:
                self._fill(operation)
        return done

    def close(self) -> None:
        """See :class:`Engine`."""
        self._bytes = NO_BYTES  # no view of it may be left when memory is unmapped
        super().close()

    def _fill(self, operation: Operation) -> None:
        """Fill the rest of the data with zeros."""
        skip = operation.moved
        for view in operation.views(self._bytes):
            view[skip:] = bytes(len(view[skip:]))
            skip = max(skip - len(view), 0)
        operation.moved = operation.length
