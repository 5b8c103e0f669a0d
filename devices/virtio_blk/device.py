"""The virtio block device (virtio 1.2 §5.2): features, configuration, life cycle."""

import threading
from collections.abc import Callable, Sequence

from pykvm.devices.virtio_blk.config import ConfigSpace
from pykvm.devices.virtio_blk.constants import (
    SECTOR_SIZE,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_ID_BYTES,
)
from pykvm.devices.virtio_blk.engine import Engine, EngineFactory, SyncEngine
from pykvm.devices.virtio_blk.image import Image
from pykvm.devices.virtio_blk.io_thread import IoThread
from pykvm.devices.virtio_blk.request import RequestParser
from pykvm.devices.virtio_blk.service import QueueService
from pykvm.devices.virtio_blk.stats import Stats
from pykvm.errors import UsageError
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_ID_BLOCK,
)
from pykvm.virtio.device import Activation

MIN_QUEUE_SIZE = 4
MAX_QUEUE_SIZE = 1024


class VirtioBlk:
    """A disk with one queue and one I/O thread, which lives from activate() to reset().

    Implements :class:`pykvm.virtio.device.VirtioDevice`. ``image`` belongs to
    the device from now on. ``stats`` counts over the device's whole life.
    ``failure`` is None, or the exception (a bug in pykvm) that ended the I/O
    thread: the guest then sees DEVICE_NEEDS_RESET.
    """

    device_id = VIRTIO_ID_BLOCK

    def __init__(
        self,
        image: Image,
        *,
        serial: str = "",
        queue_size: int = 256,
        engine: EngineFactory = SyncEngine,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """The disk is read-only if ``image`` is. UsageError for a serial or size that cannot be.

        ``serial``: at most 20 ASCII characters, what /sys/block/vda/serial
        shows. ``queue_size``: descriptors, a power of 2 from 4 to 1024.
        ``on_failure`` is called in the I/O thread with ``failure``; without
        it, threading.excepthook is.
        """
        self.image = image
        self.stats = Stats()
        self.failure: BaseException | None = None
        self._serial = _serial_bytes(serial)
        _check_queue_size(queue_size)
        self._queue_size = queue_size
        self._engine_factory = engine
        self._on_failure = on_failure or _report
        self._activation: Activation | None = None
        self._engines: list[Engine] = []
        self._thread: IoThread | None = None
        self._config = ConfigSpace()
        self._config.set("capacity", image.capacity)
        # Header and status need descriptors too (where there are no indirect ones).
        self._config.set("seg_max", queue_size - 2)
        self._config.set("blk_size", SECTOR_SIZE)
        self._config.set("num_queues", 1)

    @property
    def features(self) -> int:
        """See VirtioDevice."""
        return (
            VIRTIO_F_INDIRECT_DESC
            | VIRTIO_F_EVENT_IDX
            | VIRTIO_BLK_F_SEG_MAX
            | VIRTIO_BLK_F_BLK_SIZE
            | VIRTIO_BLK_F_FLUSH
            | (VIRTIO_BLK_F_RO if self.image.readonly else 0)
        )

    @property
    def queue_sizes(self) -> Sequence[int]:
        """See VirtioDevice."""
        return (self._queue_size,)

    @property
    def config(self) -> bytes:
        """See VirtioDevice."""
        return self._config.bytes

    def write_config(self, offset: int, size: int, value: int) -> None:
        """See VirtioDevice. No field is writable."""

    def negotiated(self, features: int) -> bool:
        """See VirtioDevice. Every subset of what is offered will do."""
        return True

    def activate(self, activation: Activation) -> None:
        """See VirtioDevice."""
        assert self._thread is None, "reset comes before the next activation"
        self.failure = None
        self._activation = activation
        services = [
            self._service(activation, index)
            for index, queue in enumerate(activation.queues)
            if queue is not None
        ]
        self._thread = IoThread(
            f"virtio-blk {self.image.path}", services, activation.broken, self._failed
        )

    def reset(self) -> None:
        """See VirtioDevice."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None
        for engine in self._engines:
            engine.close()
        self._engines.clear()
        self._activation = None

    def close(self) -> None:
        """See VirtioDevice. Closes the image."""
        self.reset()
        self.image.close()

    def _service(self, activation: Activation, index: int) -> QueueService:
        queue = activation.queues[index]
        assert queue is not None, "the caller skips disabled queues"
        engine = self._engine_factory(self.image, activation.ram)
        self._engines.append(engine)
        parser = RequestParser(
            activation.ram, self.image.capacity, self.image.readonly, self._serial
        )
        return QueueService(
            queue,
            activation.kicks[index],
            activation.ram,
            parser,
            engine,
            self.stats,
            durable=not activation.features & VIRTIO_BLK_F_FLUSH,
            interrupt=activation.interrupt,
        )

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        assert self._activation is not None, "only an active device has a thread"
        self._activation.broken(f"a bug in the virtio-blk device: {error!r}")
        self._on_failure(error)


def _report(error: BaseException) -> None:
    thread = threading.current_thread()
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, thread))
    )


def _serial_bytes(serial: str) -> bytes:
    if not serial.isascii() or not (serial.isprintable() and len(serial) <= VIRTIO_BLK_ID_BYTES):
        raise UsageError(
            f"the serial {serial!r} cannot be a disk's",
            f"use at most {VIRTIO_BLK_ID_BYTES} printable ASCII characters",
        )
    return serial.encode("ascii")


def _check_queue_size(size: int) -> None:
    if not MIN_QUEUE_SIZE <= size <= MAX_QUEUE_SIZE or size & (size - 1):
        raise UsageError(
            f"a virtio-blk queue cannot have {size} descriptors",
            f"use a power of 2 from {MIN_QUEUE_SIZE} to {MAX_QUEUE_SIZE}",
        )
