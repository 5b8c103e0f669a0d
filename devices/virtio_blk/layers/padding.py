"""The last sector of a read-only image whose size is no multiple of a sector: zeros fill it.

Imported by those who have such an image only: other runs start sooner without.
"""

from collections.abc import Sequence

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram


def padded(engine: EngineFactory) -> EngineFactory:
    """Engines like those of ``engine``, which read zeros behind the end of a file (``padding``)."""

    def make(image: Image, ram: Ram) -> Engine:
        inner = engine(image, ram)
        return PaddedEngine(inner, image, ram) if image.padding else inner

    return make


class PaddedEngine:
    """Completes what another engine reads up to the end of the file that ``image`` was."""

    def __init__(self, inner: Engine, image: Image, ram: Ram) -> None:
        """``inner`` belongs to the new engine."""
        self._inner = inner
        self._bytes = ram.bytes
        # Not where it ends by now: what somebody cut off is an error.
        self._end = image.size - image.padding

    @property
    def notifier(self) -> int:
        """See :class:`Engine`."""
        return self._inner.notifier

    @property
    def immediate(self) -> bool:
        """See :class:`Engine`."""
        return self._inner.immediate

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        self._inner.submit(operations)

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        done = self._inner.completions()
        for operation in done:
            reached = operation.offset + operation.moved
            if operation.kind == VIRTIO_BLK_T_IN and reached >= self._end and not operation.error:
                self._fill(operation)
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`."""
        return self._inner.watch(watch)

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._inner.stop()

    def close(self) -> None:
        """See :class:`Engine`."""
        self._bytes = memoryview(b"")  # memory can be unmapped once nobody looks at it
        self._inner.close()

    def _fill(self, operation: Operation) -> None:
        """Make zeros of what was not moved."""
        skip = operation.moved
        for view in operation.views(self._bytes):
            view[skip:] = bytes(len(view[skip:]))
            skip = max(skip - len(view), 0)
        operation.moved = operation.length
