"""Puts together the parts that serve a queue: parser, planner, engine, counters and trace."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE, VIRTIO_BLK_F_BLK_SIZE
from pykvm.devices.virtio_blk.core.parser import RequestParser
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.core.saved_request import RequestRules
from pykvm.devices.virtio_blk.core.scheduler import Decide
from pykvm.devices.virtio_blk.core.zero_detection import ZeroDetector
from pykvm.devices.virtio_blk.features import accepted
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.modes import DetectZeroes
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.devices.virtio_blk.serving.saved_service import load_service
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Saved
from pykvm.virtio.device import Activation
from pykvm.virtio.queue import Virtqueue

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.engines.base import EngineFactory
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace, QueueTrace


class Assembly:
    """Makes the services of one disk's queues."""

    def __init__(
        self,
        image: Image,
        options: DiskOptions,
        block: int,
        engine: "EngineFactory",
        stats: Sequence[Stats],
        *,
        durable: Callable[[], bool],
        decide: Decide,
        trace: "DiskTrace | None",
    ) -> None:
        """``block``: bytes of a logical block. ``stats``: the counters of each queue.

        ``durable`` and ``decide``: see QueueService.
        """
        self._image = image
        self._options = options
        self._block = block
        self._engine = engine
        self._stats = stats
        self._durable = durable
        self._decide = decide
        self._trace = trace
        self._limits = Limits(requests=options.merge_max, bytes=image.max_transfer)

    def parser(self, ram: Ram, features: int) -> RequestParser:
        """A parser for a driver that has negotiated ``features``."""
        return RequestParser(
            ram,
            self._image.capacity,
            self._image.readonly,
            self._options.serial.encode("ascii"),
            self._unit(features),
            accepted(self._options, features),
        )

    def service(
        self, activation: Activation, parser: RequestParser, index: int, queue: Virtqueue
    ) -> QueueService:
        """A service for ``queue``, with an engine of its own."""
        engine = self._engine(self._image, activation.ram)
        return QueueService(
            queue,
            activation.kicks[index],
            activation.ram,
            parser,
            Planner(self._options.merge, self._limits),
            engine,
            self._stats[index],
            durable=self._durable,
            decide=self._decide,
            interrupt=activation.interrupt,
            trace=self._queue_trace(index),
            detector=self._detector(activation.ram),
        )

    def load(self, service: QueueService, saved: Saved, ram: Ram, features: int) -> None:
        """Have ``service`` go on with the state in ``saved``: see load_service. SnapshotError."""
        queue = service.queue
        rules = RequestRules(
            ram.regions,
            queue.size + queue.indirect_limit,
            self._image.readonly,
            self._unit(features),
            accepted(self._options, features),
        )
        load_service(service, saved, rules, self._queue_trace(queue.index))

    def _unit(self, features: int) -> int:
        """Bytes of a block. The driver has to know of larger ones before it must obey them."""
        return self._block if features & VIRTIO_BLK_F_BLK_SIZE else SECTOR_SIZE

    def _queue_trace(self, index: int) -> "QueueTrace | None":
        return self._trace.queue(index) if self._trace is not None else None

    def _detector(self, ram: Ram) -> ZeroDetector | None:
        wanted = self._options.detect_zeroes
        if wanted is DetectZeroes.OFF or self._image.readonly:
            return None
        return ZeroDetector(ram, wanted is DetectZeroes.UNMAP)
