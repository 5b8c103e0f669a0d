"""``snapshot=on``: a disk that can be written while its file stays as it is.

Writes go to a temporary file without a name, which is as large as the image but
sparse. A map knows the sectors in that file. A read is cut wherever it passes
from one file to the other::

    image      │ A │ B │ C │ D │ E │        read of all five
    temporary          │ x │ y │            A B from the image, x y from the
    map          0   0   1   1   0          temporary file, E from the image

A driver writes whole sectors, and the map's unit is a sector. So no data are ever
copied from one file to the other, and writes can run at the same time. If the
filesystem does not allow a file as large as the disk, several files follow each
other, and an operation that passes from one to the next is cut there, too.
A sector enters the map when its write completes. Until then, reads find the old
content, as they may.

Only runs with a disk of this kind import this module.
"""

import errno
import os
import select
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.layers.sector_map import SectorMap
from pykvm.devices.virtio_blk.layers.temporary import folder, temporary_files
from pykvm.devices.virtio_blk.modes import CacheMode, ImageFormat, Locking
from pykvm.errors import UsageError, reason_of
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram

MOST_PARTS: Final = 64
"""A read with more parts comes back short, because the guest decides their number."""

_BELOW: Final = -1
"""Stands for the image, where other numbers are those of temporary files."""


class OverlayImage(Image):
    """A temporary image over ``base``, which belongs to it from now on.

    ``fd`` is a temporary file, so only the engines of :meth:`wrap` read all of
    the disk. No sync ever happens: ``cache`` is UNSAFE.
    """

    def __init__(self, base: Image) -> None:
        """UsageError if a temporary file cannot be made."""
        place = folder()
        self._more: list[Image] = []
        with ExitStack() as opened, ExitStack() as undo:
            try:
                files, self._piece = temporary_files(opened, place, base.size)
            except OSError as error:
                raise UsageError(
                    f"no temporary file for {base.path} can be made in {place}: {reason_of(error)}",
                    "set TMPDIR to a folder with room for the guest's writes"
                    if error.errno != errno.EFBIG
                    else "set TMPDIR to a folder on a filesystem with larger files, such as XFS",
                ) from None
            super().__init__(_path(files[0]), **_TEMPORARY)
            undo.callback(super().close)
            for file in files[1:]:
                self._more.append(Image(_path(file), **_TEMPORARY))
                undo.callback(self._more[-1].close)
            undo.pop_all()
        self.size = base.size
        self.path = base.path
        self.room = place
        self.notices = base.notices
        self.max_transfer = min(self.max_transfer, base.max_transfer)
        self.blocks = base.blocks
        self._base = base
        self._written = SectorMap(base.capacity)
        self._lock = threading.Lock()

    def resize(self, size: int, block: int = SECTOR_SIZE) -> None:
        """See Image; the image below keeps its size.

        Sectors that the disk has lost once are zeros when it grows again.
        """
        super().resize(size, block)
        self._written.end = min(self._written.end, self.capacity)

    def close(self) -> None:
        """See Image. Frees the temporary files."""
        super().close()
        for image in self._more:
            image.close()
        self._base.close()

    def add(self, offset: int, length: int) -> None:
        """Enter ``length`` bytes from byte ``offset`` on into the map. From any thread.

        If they begin inside a sector, they continue a write that came short there.
        """
        with self._lock:
            self._written.add(offset >> SECTOR_SHIFT, offset + length >> SECTOR_SHIFT)

    def parts(self, operation: Operation) -> list["Part"]:
        """The parts of ``operation`` in the files, or the first MOST_PARTS of them."""
        found: list[Part] = []
        offset, end = operation.offset, operation.offset + operation.length
        reads = operation.kind == VIRTIO_BLK_T_IN
        last = end + (1 << SECTOR_SHIFT) - 1 >> SECTOR_SHIFT
        while offset < end and len(found) < MOST_PARTS:
            above, until = True, end
            if reads:
                first = offset >> SECTOR_SHIFT
                above, sectors = self._written.run(first, last)
                until = min(first + sectors << SECTOR_SHIFT, end)
            file, place = divmod(offset, self._piece) if above else (_BELOW, offset)
            if above:
                until = min(until, offset - place + self._piece)
            found.append(Part(file, place, until - offset))
            offset = until
        return found

    def wrap(self, engine: EngineFactory) -> EngineFactory:
        """Makes engines for this image; each uses one engine of ``engine`` for each file."""

        def make(image: Image, ram: Ram) -> Engine:
            with ExitStack() as undo:
                engines: list[Engine] = []
                for file in (self._base, self, *self._more):
                    engines.append(engine(file, ram))
                    undo.callback(engines[-1].close)
                made = OverlayEngine(engines[0], engines[1:], self)
                undo.pop_all()
                return made

        return make

    def _truncate(self, size: int) -> None:
        if size > self._piece * (1 + len(self._more)):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        for index, image in enumerate((self, *self._more)):
            os.ftruncate(image.fd, min(max(size - index * self._piece, 0), self._piece))


class Part(NamedTuple):
    """``length`` bytes of an operation at byte ``place`` of ``file``: a number, or _BELOW."""

    file: int
    place: int
    length: int


_TEMPORARY: Final[dict[str, Any]] = {
    "cache": CacheMode.UNSAFE,
    "format": ImageFormat.RAW,
    "locking": Locking.OFF,
}


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


class OverlayEngine:
    """Has one engine read the image, and others of its kind execute everything else."""

    def __init__(self, below: Engine, above: Sequence[Engine], image: OverlayImage) -> None:
        """``below`` reads the image, ``above`` serve the temporary files. All belong to it now."""
        self._engines = (*above, below)  # below is at index _BELOW
        self._image = image
        self._joints: dict[Operation, _Joint] = {}
        self._epoll: select.epoll | None = None
        kinds = {engine.notifier < 0 for engine in self._engines}
        assert len(kinds) == 1, "engines of one kind"
        if below.notifier >= 0:
            # An epoll descriptor is readable while one of its members is.
            self._epoll = select.epoll()
            try:
                for engine in self._engines:
                    self._epoll.register(engine.notifier, select.EPOLLIN)
            except BaseException:
                self._epoll.close()
                raise

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
                batches[parts[0].file].append(operation)
                continue
            joint = _Joint(operation, parts)
            for part, (file, _, _) in zip(joint.parts, parts, strict=True):
                self._joints[part] = joint
                batches[file].append(part)
        with ExitStack() as rest:  # if one raises, the others get theirs, too
            for engine, batch in zip(self._engines, batches, strict=True):
                if batch:
                    rest.callback(engine.submit, batch)

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        done: list[Operation] = []
        for engine in self._engines:
            for operation in engine.completions():
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
        assert not self._joints, "completions were left behind"
        if self._epoll is not None:
            self._epoll.close()
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
