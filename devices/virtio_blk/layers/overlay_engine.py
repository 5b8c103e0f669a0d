"""The engine of an overlay: it sends each part of an operation to the file that has it."""

import os
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine
from pykvm.hot.word_watch import Watch
from pykvm.hot.words import NO_BYTES
from pykvm.memory.ram import Ram

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.layers.overlay import OverlayImage

TOP: Final = 0
BELOW: Final = -1
FIRST_FROZEN: Final = -2


class Part(NamedTuple):
    """``length`` bytes of an operation, at byte ``place`` of ``file``.

    The temporary files of the present layer have the numbers from 0 on. BELOW is the image. The
    frozen layers have the numbers from FIRST_FROZEN on downwards, and ``place`` counts from the
    beginning of the disk.
    """

    file: int
    place: int
    length: int


class OverlayEngine:
    """Has one engine read the image, and others of its kind execute everything else.

    Reads of frozen layers are done when they have been submitted.
    """

    def __init__(self, engines: Sequence[Engine], image: "OverlayImage", ram: Ram) -> None:
        """``engines`` serve the temporary files and the image, if there is one; all belong to it.

        They are of one kind.
        """
        self._engines = tuple(engines)
        self._image = image
        self._bytes = ram.bytes
        self._joints: dict[Operation, _Joint] = {}
        self._done: list[Operation] = []
        self._epoll: select.epoll | None = None
        self._wake = -1
        kinds = {engine.notifier < 0 for engine in self._engines}
        assert len(kinds) == 1, "engines of one kind"
        if engines[0].notifier >= 0:
            # An epoll descriptor is readable while one of its members is.
            with ExitStack() as undo:
                self._epoll = select.epoll()
                undo.callback(self._epoll.close)
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                undo.callback(os.close, self._wake)
                for fd in (self._wake, *[engine.notifier for engine in engines]):
                    self._epoll.register(fd, select.EPOLLIN)
                undo.pop_all()

    @property
    def notifier(self) -> int:
        """See :class:`Engine`."""
        return -1 if self._epoll is None else self._epoll.fileno()

    @property
    def immediate(self) -> bool:
        """See :class:`Engine`."""
        return all(engine.immediate for engine in self._engines)

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        batches: list[list[Operation]] = [[] for _ in self._engines]
        for operation in operations:
            if operation.kind == VIRTIO_BLK_T_FLUSH or not operation.length:
                batches[0].append(operation)
                continue
            parts = self._image.parts(operation)
            if len(parts) == 1 and parts[0].place == operation.offset:
                self._give(operation, parts[0].file, batches)
                continue
            joint = _Joint(operation, parts)
            for part, (file, _, _) in zip(joint.parts, parts, strict=True):
                self._joints[part] = joint
                self._give(part, file, batches)
        if self._done and self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        with ExitStack() as rest:  # if one raises, the others get theirs, too
            for engine, batch in zip(self._engines, batches, strict=True):
                if batch:
                    rest.callback(engine.submit, batch)

    def _give(self, operation: Operation, file: int, batches: list[list[Operation]]) -> None:
        """Put ``operation`` into the batch of ``file``, or execute it if that is a frozen layer."""
        if file > FIRST_FROZEN:
            batches[file].append(operation)  # the image's is the last one
            return
        self._image.frozen[FIRST_FROZEN - file].read(operation, self._bytes)
        operation.finished_ns = time.monotonic_ns()
        self._done.append(operation)

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        if self._wake >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        frozen, self._done = self._done, []
        done: list[Operation] = []
        for completed in (frozen, *[engine.completions() for engine in self._engines]):
            for operation in completed:
                joint = self._joints.pop(operation, None)
                if joint is None:
                    done.append(operation)
                elif joint.complete():
                    done.append(joint.operation)
        for operation in done:
            if operation.kind not in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_FLUSH) and not operation.error:
                self._image.add(operation.offset, operation.moved)
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`. A watch takes the words of one engine only."""
        return False

    def stop(self) -> None:
        """See :class:`Engine`."""
        for engine in self._engines:
            engine.stop()

    def close(self) -> None:
        """See :class:`Engine`."""
        left = [*self._joints, *self._done]
        assert not left, "completions were left behind"
        self._bytes = NO_BYTES  # no view of it may be left when memory is unmapped
        if self._epoll is not None:
            self._epoll.close()
            os.close(self._wake)
        for engine in self._engines:
            engine.close()


class _Joint:
    """An operation and its ``parts``, in their order; they need not reach its end."""

    def __init__(self, operation: Operation, parts: Sequence[Part]) -> None:
        self.operation = operation
        self.parts: list[Operation] = []
        self._pending = len(parts)
        start = 0
        for _, place, length in parts:
            part = Operation()
            part.clip(operation, start, length)
            part.offset = place
            self.parts.append(part)
            start += length

    def complete(self) -> bool:
        """Count a completed part; True after the last one, when the operation has its results."""
        self._pending -= 1
        if self._pending:
            return False
        whole = self.operation
        whole.finished_ns = max(part.finished_ns for part in self.parts)
        for part in self.parts:
            whole.error = part.error
            whole.moved += part.moved
            if part.error or part.moved < part.length:
                break
        return True
