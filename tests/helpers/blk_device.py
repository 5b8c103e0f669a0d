"""A whole disk on a fake transport, and a driver that speaks virtio-blk to it."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack

from pykvm.devices.virtio_blk import DiskOptions, Image, VirtioBlk
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.hooks import DeviceHooks
from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport
from pykvm.virtio.constants import VIRTIO_F_RING_PACKED

SECTORS = 256
SIZE = SECTORS * 512
IN, OUT, FLUSH, GET_ID = (
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
)
OK, IOERR, UNSUPP = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP


class Disk:
    """A started device, and a driver that speaks virtio-blk."""

    def __init__(self, transport: FakeTransport, device: VirtioBlk) -> None:
        self.transport = transport
        self.device = device

    def send(self, kind: int, sector: int = 0, data: bytes = b"", size: int = 0) -> int:
        head = pack("<IIQ", kind, 0, sector)
        readable = [head, data] if data else [head]
        return self.transport.drivers[0].send(readable, [size, 1] if size else [1])

    def wait(self, head: int) -> tuple[int, bytes, int]:
        """(status, data, used length)"""
        used = self.transport.wait(head)
        answer = self.transport.drivers[0].response(head)
        return answer[-1], answer[:-1], used

    def do(self, kind: int, sector: int = 0, data: bytes = b"", size: int = 0) -> tuple[int, bytes]:
        status, answer, used = self.wait(self.send(kind, sector, data, size))
        assert used == used_length(kind, status, answer)
        return status, answer

    def stats(self) -> dict[str, int]:
        counts = self.device.stats.as_dict()
        del counts["idle_time_ns"]
        return {name: n for name, n in counts.items() if n}


def used_length(kind: int, status: int, data: bytes) -> int:
    """The length that was written without a gap, for an answer that left ``data`` in memory.

    The status behind data that may not have been written does not count (virtio 1.2 §2.7.8.2).
    """
    if status != OK:
        return 0 if data else 1
    return VIRTIO_BLK_ID_BYTES if kind == GET_ID and len(data) > 20 else len(data) + 1


Maker = Callable[..., Disk]
"""Makes started disks; keyword arguments of VirtioBlk, FakeTransport, Image."""


def disk_file(folder: Path) -> Path:
    """A new image in ``folder``, of SECTORS random sectors."""
    file = folder / "disk"
    file.write_bytes(random.Random(1).randbytes(SIZE))
    return file


def block_device(image: Image, **arguments: object) -> VirtioBlk:
    """A VirtioBlk; ``arguments`` are its own, and those of DiskOptions and DeviceHooks."""
    options, hooks = (
        {name: arguments.pop(name) for name in vars(kind()) if name in arguments}
        for kind in (DiskOptions, DeviceHooks)
    )
    return VirtioBlk(image, DiskOptions(**options), hooks=DeviceHooks(**hooks), **arguments)  # type: ignore[arg-type]


@contextmanager
def disks(path: Path, packed: bool = False) -> Iterator[Maker]:
    """Makes disks on ``path``, and closes them at the end; ``packed``: with packed queues."""
    made: list[Disk] = []

    def maker(
        readonly: bool = False,
        features: int | None = None,
        ram: Ram | None = None,
        start: bool = True,
        **kwargs: object,
    ) -> Disk:
        if features is not None and packed:
            features |= VIRTIO_F_RING_PACKED
        device = block_device(Image(path, readonly), **{"packed": packed, **kwargs})
        transport = FakeTransport(device, ram, features=features)
        made.append(Disk(transport, device))
        if start:
            transport.start()
        return made[-1]

    try:
        yield maker
    finally:
        for disk in made:
            disk.transport.close()
            disk.device.close()


def device_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("virtio-blk")]
