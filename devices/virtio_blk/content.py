"""The content of a disk, for its owner: what a guest would read there, without the guest.

Reads and writes go through an overlay, like those of the guest, but neither through faults
nor through rate limits.
"""

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.base import Engine
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.layers.overlay import OverlayImage
from pykvm.devices.virtio_blk.layers.padding import padded
from pykvm.errors import HostError, UsageError, error_text
from pykvm.memory.ram import Ram

_PIECE = 1 << 20


def read(image: Image, offset: int, length: int) -> bytes:
    """``length`` bytes from byte ``offset`` on. UsageError beyond the end; HostError."""
    _check(image, offset, length)
    content = _Content(image)
    try:
        first = offset - offset % SECTOR_SIZE
        data = content.read(first, offset + length - first)
        return data[offset - first :][:length]
    finally:
        content.close()


def write(image: Image, offset: int, data: bytes) -> None:
    """Write ``data`` at byte ``offset``. UsageError beyond the end or if read-only; HostError.

    Whole sectors are written, so a part of a sector is read before.
    """
    if image.readonly:
        raise UsageError(f"the disk image {image.path} is read-only", "leave out readonly=on")
    _check(image, offset, len(data))
    content = _Content(image)
    try:
        head = offset % SECTOR_SIZE
        tail = -(offset + len(data)) % SECTOR_SIZE
        before = content.read(offset - head, SECTOR_SIZE)[:head] if head else b""
        end = offset + len(data)
        after = content.read(end + tail - SECTOR_SIZE, SECTOR_SIZE)[-tail:] if tail else b""
        content.write(offset - head, before + data + after)
    finally:
        content.close()


def _check(image: Image, offset: int, length: int) -> None:
    if image.fd < 0:
        raise UsageError(f"the disk {image.path} is closed", "use it before")
    if offset < 0 or length < 0 or offset + length > image.size:
        raise UsageError(
            f"bytes {offset} to {offset + length} are not on a disk of {image.size} bytes",
            "stay within its size",
        )


class _Content:
    """Executes operations on whole sectors of ``image``, one at a time, in the caller's thread."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._ram = Ram.flat(_PIECE)
        make = padded(SyncEngine)
        if isinstance(image, OverlayImage):
            make = image.wrap(make)
        self._engine: Engine = make(image, self._ram)

    def read(self, at: int, length: int) -> bytes:
        """At least ``length`` bytes from byte ``at`` on."""
        made = []
        end = at + length
        while at < end:
            moved = self._move(
                VIRTIO_BLK_T_IN, at, min(-(-(end - at) // SECTOR_SIZE) * SECTOR_SIZE, _PIECE)
            )
            made.append(bytes(self._ram.bytes[:moved]))
            at += moved
        return b"".join(made)

    def write(self, at: int, data: bytes) -> None:
        """Write ``data``, whole sectors, at byte ``at``."""
        done = 0
        while done < len(data):
            piece = data[done : done + _PIECE]
            self._ram.bytes[: len(piece)] = piece
            done += self._move(VIRTIO_BLK_T_OUT, at + done, len(piece))

    def _move(self, kind: int, at: int, length: int) -> int:
        """The bytes that were moved, at least a sector and whole sectors."""
        operation = Operation()
        operation.kind, operation.offset, operation.length = kind, at, length
        operation.make_room(1)
        operation.offsets[0], operation.lengths[0] = 0, length
        self._engine.submit([operation])
        self._engine.completions()
        moved = operation.moved - operation.moved % SECTOR_SIZE
        if operation.error or not moved:
            reason = (
                error_text(operation.error) if operation.error else "it is shorter than the disk"
            )
            raise HostError(f"the disk image {self._image.path} cannot be used: {reason}")
        return moved

    def close(self) -> None:
        """Close the engine, not the image."""
        self._engine.close()
        self._ram.release()
