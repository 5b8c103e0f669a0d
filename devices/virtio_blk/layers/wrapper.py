"""The base of engines that wrap an engine: it passes every call on."""

from collections.abc import Sequence

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine
from pykvm.hot.word_watch import Watch


class EngineWrapper:
    """Has ``inner`` do everything. A subclass overrides the methods that it changes."""

    def __init__(self, inner: Engine) -> None:
        """``inner`` belongs to the wrapper from now on."""
        self._inner = inner

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
        return self._inner.completions()

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`."""
        return self._inner.watch(watch)

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._inner.stop()

    def close(self) -> None:
        """See :class:`Engine`."""
        self._inner.close()
