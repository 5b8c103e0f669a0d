"""``snapshot=on``: a disk that can be written while its file stays as it is.

Writes go to a temporary file that has no name and is as large as the image,
but sparse; a map knows which sectors it holds. A read is cut where it passes
from one file to the other::

    image      │ A │ B │ C │ D │ E │        read of all five
    temporary          │ x │ y │            A B from the image, x y from the
    map          0   0   1   1   0          temporary file, E from the image

A driver writes whole sectors, and the map knows sectors, so nothing is ever
copied from one file to the other, and writes side by side need not take turns.
A sector enters the map when the write that holds it is done: until then reads
find what was there before, as they may.

Imported by those who want it only: other runs start sooner without.
"""

import os
import select
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
)
from pykvm.devices.virtio_blk.engine import Engine, EngineFactory
from pykvm.devices.virtio_blk.image import Image
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.devices.virtio_blk.options import CacheMode, ImageFormat, Locking
from pykvm.devices.virtio_blk.sector_map import SectorMap
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram
from pykvm.watch import Watch

MOST_PARTS: Final = 64
"""A read in more parts comes back short: a guest decides how many there are."""


def folder() -> str:
    """Where the temporary files are, as in QEMU: ``/tmp`` is memory on many hosts."""
    return os.environ.get("TMPDIR") or "/var/tmp"


class Snapshot(Image):
    """The temporary image over ``base``, which belongs to it from now on.

    Its descriptor is the temporary file's, so only the engines of
    :meth:`wrap` know all its bytes. Nothing is ever put on stable storage:
    ``cache`` is UNSAFE.
    """

    def __init__(self, base: Image) -> None:
        """UsageError if there is no place for the temporary file."""
        place = folder()
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                os.ftruncate(file.fileno(), base.size)
                path = f"/proc/self/fd/{file.fileno()}"
                super().__init__(
                    path, cache=CacheMode.UNSAFE, format=ImageFormat.RAW, locking=Locking.OFF
                )
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise UsageError(
                f"no temporary file for {base.path} can be made in {place}: {reason}",
                "set TMPDIR to a folder with room for what the guest writes",
            ) from None
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

        What the disk has lost once is zeros when it grows again.
        """
        super().resize(size, block)
        self._written.end = min(self._written.end, self.capacity)

    def close(self) -> None:
        """See Image; the temporary file is gone."""
        super().close()
        self._base.close()

    def add(self, offset: int, length: int) -> None:
        """So many bytes from byte ``offset`` on are in the temporary file now. From any thread.

        What begins inside a sector goes on where another write came short in it.
        """
        with self._lock:
            self._written.add(offset >> SECTOR_SHIFT, offset + length >> SECTOR_SHIFT)

    def runs(self, offset: int, length: int) -> list[tuple[bool, int]]:
        """Where so many bytes from byte ``offset`` on are, or the first of them if that is long.

        In turn: whether in the temporary file, and how many of them.
        """
        found: list[tuple[bool, int]] = []
        end = offset + length
        last = end + (1 << SECTOR_SHIFT) - 1 >> SECTOR_SHIFT
        while offset < end and len(found) < MOST_PARTS:
            first = offset >> SECTOR_SHIFT
            above, sectors = self._written.run(first, last)
            until = min(first + sectors << SECTOR_SHIFT, end)
            found.append((above, until - offset))
            offset = until
        return found

    def wrap(self, engine: EngineFactory) -> EngineFactory:
        """Engines for this image, each made of two of ``engine``."""

        def make(image: Image, ram: Ram) -> Engine:
            with ExitStack() as undo:
                below = engine(self._base, ram)
                undo.callback(below.close)
                above = engine(self, ram)
                undo.callback(above.close)
                made = OverlayEngine(below, above, self)
                undo.pop_all()
                return made

        return make


class OverlayEngine:
    """Has one engine read the image, and another one of its kind do all else."""

    def __init__(self, below: Engine, above: Engine, image: Snapshot) -> None:
        """Both engines belong to the new one."""
        self._below = below
        self._above = above
        self._image = image
        self._joints: dict[Operation, _Joint] = {}
        self._epoll: select.epoll | None = None
        assert (below.notifier < 0) == (above.notifier < 0), "engines of one kind"
        if below.notifier >= 0:
            # Readable while one of its descriptors is.
            self._epoll = select.epoll()
            for engine in (below, above):
                self._epoll.register(engine.notifier, select.EPOLLIN)

    @property
    def notifier(self) -> int:
        """See :class:`Engine`."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        below: list[Operation] = []
        above: list[Operation] = []
        for operation in operations:
            if operation.kind != VIRTIO_BLK_T_IN:
                above.append(operation)
                continue
            runs = self._image.runs(operation.offset, operation.length)
            if len(runs) == 1:
                (above if runs[0][0] else below).append(operation)
                continue
            joint = _Joint(operation, [length for _, length in runs])
            for part, (shadowed, _) in zip(joint.parts, runs, strict=True):
                self._joints[part] = joint
                (above if shadowed else below).append(part)
        try:
            if below:
                self._below.submit(below)
        finally:  # after a bug: a reset must not wait for what nobody was given
            if above:
                self._above.submit(above)

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        done: list[Operation] = []
        for operation in self._above.completions():
            if operation.kind not in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_FLUSH) and not operation.error:
                self._image.add(operation.offset, operation.moved)
            self._collect(operation, done)
        for operation in self._below.completions():
            self._collect(operation, done)
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`. One of two engines would not do."""
        return False

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._below.stop()
        self._above.stop()

    def close(self) -> None:
        """See :class:`Engine`."""
        assert not self._joints, "completions were left behind"
        if self._epoll is not None:
            self._epoll.close()
        self._below.close()
        self._above.close()

    def _collect(self, operation: Operation, done: list[Operation]) -> None:
        joint = self._joints.pop(operation, None)
        if joint is None:
            done.append(operation)
        elif joint.complete():
            done.append(joint.operation)


class _Joint:
    """A read, and its ``parts`` of ``lengths`` bytes one after another, up to its end or not."""

    def __init__(self, operation: Operation, lengths: Sequence[int]) -> None:
        self.operation = operation
        self.parts: list[Operation] = []
        self._pending = len(lengths)
        start = 0
        for length in lengths:
            part = Operation()
            part.clip(operation, start, length)
            self.parts.append(part)
            start += length

    def complete(self) -> bool:
        """One more part is done; whether all are, and the results are the operation's."""
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
