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

Between the two there may be frozen layers, from snapshots
(:mod:`pykvm.devices.virtio_blk.layers.frozen`). They are mostly in memory, so reads of them
are system calls of the disk's thread, whatever the engine. A blank disk has no image:
its lowest layer has zeros everywhere, and its temporary file is in memory.

Only runs with a disk of this kind import this module.
"""

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from pykvm.devices.virtio_blk.constants import (
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VIRTIO_BLK_T_IN,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory
from pykvm.devices.virtio_blk.image.file import MAX_SIZE, Image
from pykvm.devices.virtio_blk.layers.frozen import (
    MOST_LAYERS,
    FrozenLayer,
    Layers,
    memory_file,
    merge,
    zeros,
)
from pykvm.devices.virtio_blk.layers.overlay_engine import (
    BELOW,
    FIRST_FROZEN,
    TOP,
    OverlayEngine,
    Part,
)
from pykvm.devices.virtio_blk.layers.sector_map import SectorMap
from pykvm.devices.virtio_blk.layers.temporary import folder, temporary_file, temporary_files
from pykvm.devices.virtio_blk.modes import CacheMode, ImageFormat, Locking
from pykvm.errors import UsageError, reason_of
from pykvm.memory.ram import Ram

MOST_PARTS: Final = 64
"""A read with more parts comes back short, because the guest decides their number."""


class OverlayImage(Image):
    """A temporary image over ``base``, which belongs to it from now on.

    ``fd`` is a temporary file, so only the engines of :meth:`wrap` read all of
    the disk. No sync ever happens: ``cache`` is UNSAFE. ``base`` is None for a blank disk.
    ``frozen`` are the layers between the two, the lowest first.
    """

    def __init__(self, base: Image | None, size: int = 0) -> None:
        """``size``: the bytes of a blank disk. UsageError if a temporary file cannot be made."""
        self.base = base
        self.frozen: tuple[FrozenLayer, ...] = ()
        # Layers, and the one into which merge_frozen() has merged them.
        self._together: tuple[tuple[FrozenLayer, ...], FrozenLayer | None] = ((), None)
        self._more: list[Image] = []
        if base is None:
            self._begin_blank(size)
        else:
            self._begin(base)
        self._written = SectorMap(self.capacity)
        self._lock = threading.Lock()

    def _begin_blank(self, size: int) -> None:
        try:
            lowest = zeros(size)
            self._piece = MAX_SIZE
            try:
                file = memory_file(size)
                try:
                    super().__init__(_path(file), **_TEMPORARY)
                finally:
                    os.close(file)
            except BaseException:
                lowest.release()
                raise
        except OSError as error:
            raise UsageError(
                f"a blank disk of {size} bytes cannot be made: {reason_of(error)}",
                "give it fewer bytes",
            ) from None
        self.frozen = (lowest,)
        self.path = f"blank={size}"

    def _begin(self, base: Image) -> None:
        place = folder()
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
        if self.base is not None:
            self.base.close()
        for layer in self.frozen:
            layer.release()
        self.frozen = ()
        self._forget_merged()

    # -- snapshots: nothing is in flight ----------------------------------------

    def freeze(self) -> Layers:
        """Freeze the present layer, and go on in a new one. Returns all frozen layers.

        They belong to the caller. OSError if there can be no new layer, and nothing has changed.
        """
        images = [self, *self._more]
        with ExitStack() as opened:
            fresh = [self._new_file(opened, size) for size in self._sizes(self.size)]
            layer = FrozenLayer([os.dup(self.fd)], self._piece, self._written)
            opened.callback(layer.release)
            for image in self._more:
                layer.files += (os.dup(image.fd),)
            layers = [*(self._taken_together(opened) or self.frozen), layer]
            # The engines know the descriptors, which now mean the new files.
            for image, file in zip(images, fresh, strict=True):
                os.dup2(file, image.fd, inheritable=False)
            self._set_frozen(layers)
        self._written = SectorMap(self.capacity)
        return Layers(self.frozen, self.size)

    def merge_frozen(self) -> None:
        """Merge the frozen layers if they are many, for the next :meth:`freeze`. OSError.

        This copies their content. Operations may be in flight.
        """
        if len(self.frozen) < MOST_LAYERS or self._more:
            return
        with ExitStack() as opened:
            merged = self._merged(opened, self.frozen)
            merged.hold()
        self._forget_merged()
        self._together = (self.frozen, merged)

    def _taken_together(self, opened: ExitStack) -> tuple[FrozenLayer, ...]:
        """The layer of :meth:`merge_frozen`, if it is of the present layers; none otherwise."""
        before, merged = self._together
        if merged is None or before != self.frozen:
            return ()
        merged.hold()
        opened.callback(merged.release)
        self._forget_merged()
        return (merged,)

    def _forget_merged(self) -> None:
        merged = self._together[1]
        self._together = ((), None)
        if merged is not None:
            merged.release()

    def put_back(self, layers: Layers) -> None:
        """Go on in an empty layer on top of ``layers``, with their size. OSError.

        ValueError if this disk cannot have these layers.
        """
        if self.base is None and not (layers.layers and layers.layers[0].map.end == 0):
            raise ValueError("the layers of a blank disk begin with zeros")
        for image in (self, *self._more):
            os.ftruncate(image.fd, 0)
        self._truncate(layers.size)
        self.size = layers.size
        self._set_frozen(layers.layers)
        self._written = SectorMap(self.capacity)

    def _set_frozen(self, layers: Sequence[FrozenLayer]) -> None:
        before, self.frozen = self.frozen, tuple(layers)
        for layer in self.frozen:
            layer.hold()
        for layer in before:
            layer.release()

    def _merged(self, opened: ExitStack, layers: Sequence[FrozenLayer]) -> FrozenLayer:
        """One layer, which ``opened`` releases, with the content of ``layers``. OSError."""
        file = os.dup(self._new_file(opened, 0))
        try:
            written = merge(layers, self.size, file)
        except BaseException:
            os.close(file)
            raise
        merged = FrozenLayer([file], MAX_SIZE, written)
        opened.callback(merged.release)
        return merged

    def _new_file(self, opened: ExitStack, size: int) -> int:
        """A descriptor, which ``opened`` closes, of an empty file for a layer. OSError."""
        if self.base is not None:
            return temporary_file(opened, self.room, size)
        file = memory_file(size)
        opened.callback(os.close, file)
        return file

    def _sizes(self, size: int) -> list[int]:
        """The bytes of each temporary file of a disk of ``size`` bytes."""
        count = 1 + len(self._more)
        return [min(max(size - at * self._piece, 0), self._piece) for at in range(count)]

    def add(self, offset: int, length: int) -> None:
        """Enter ``length`` bytes from byte ``offset`` on into the map. From any thread.

        If they begin inside a sector, they continue a write that came short there.
        """
        with self._lock:
            self._written.add(offset >> SECTOR_SHIFT, offset + length >> SECTOR_SHIFT)

    def parts(self, operation: Operation) -> list[Part]:
        """The parts of ``operation`` in the files, or the first MOST_PARTS of them."""
        found: list[Part] = []
        offset, end = operation.offset, operation.offset + operation.length
        reads = operation.kind == VIRTIO_BLK_T_IN
        last = end + (1 << SECTOR_SHIFT) - 1 >> SECTOR_SHIFT
        while offset < end and len(found) < MOST_PARTS:
            file, until = TOP, end
            if reads:
                file, sectors = self._find(offset >> SECTOR_SHIFT, last)
                until = min((offset >> SECTOR_SHIFT) + sectors << SECTOR_SHIFT, end)
            place = offset
            if file == TOP:
                file, place = divmod(offset, self._piece)
                until = min(until, offset - place + self._piece)
            elif file < BELOW:
                piece = self.frozen[FIRST_FROZEN - file].piece
                until = min(until, offset - offset % piece + piece)
            found.append(Part(file, place, until - offset))
            offset = until
        return found

    def _find(self, first: int, end: int) -> tuple[int, int]:
        """The file with sector ``first``, as in :class:`Part`, where 0 stands for any above.

        The second number counts the sectors that it has from there on, up to ``end``.
        """
        inside, sectors = self._written.run(first, end)
        if inside:
            return TOP, sectors
        for number in range(len(self.frozen) - 1, -1, -1):
            inside, sectors = self.frozen[number].map.run(first, first + sectors)
            if inside:
                return FIRST_FROZEN - number, sectors
        return BELOW, sectors

    def wrap(self, engine: EngineFactory) -> EngineFactory:
        """Makes engines for this image; each uses one engine of ``engine`` for each file."""

        def make(image: Image, ram: Ram) -> Engine:
            with ExitStack() as undo:
                engines: list[Engine] = []
                for file in (self, *self._more, *([self.base] if self.base else ())):
                    engines.append(engine(file, ram))
                    undo.callback(engines[-1].close)
                made = OverlayEngine(engines, self, ram)
                undo.pop_all()
                return made

        return make

    def _truncate(self, size: int) -> None:
        if size > self._piece * (1 + len(self._more)):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        for image, bytes_of_it in zip((self, *self._more), self._sizes(size), strict=True):
            os.ftruncate(image.fd, bytes_of_it)


_TEMPORARY: Final[dict[str, Any]] = {
    "cache": CacheMode.UNSAFE,
    "format": ImageFormat.RAW,
    "locking": Locking.OFF,
}


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
