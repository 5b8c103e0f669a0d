"""The virtio block device (virtio 1.2 §5.2) as its transport sees it, from features to reset."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pykvm.devices.virtio_blk.assembly import Assembly
from pykvm.devices.virtio_blk.config_space import FIELDS, ConfigSpace
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_MQ
from pykvm.devices.virtio_blk.controls import DiskControls
from pykvm.devices.virtio_blk.core.parser import RequestParser
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.failing import Failing
from pykvm.devices.virtio_blk.features import Blocks, describe, offered
from pykvm.devices.virtio_blk.hooks import NO_HOOKS, DeviceHooks
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.devices.virtio_blk.resizing import Resizing
from pykvm.devices.virtio_blk.restoring import Restoring
from pykvm.devices.virtio_blk.serving.io_thread_group import Halt, IoThreadGroup
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.devices.virtio_blk.write_cache import WriteCache
from pykvm.errors import HostError, shortage
from pykvm.snapshot.fields import Fields, Saved
from pykvm.virtio.constants import VIRTIO_ID_BLOCK
from pykvm.virtio.device import Activation
from pykvm.virtio.queue import Virtqueue

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.engines.base import EngineFactory
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace

DEFAULTS: Final = DiskOptions()


class VirtioBlk(DiskControls):
    """A disk as its transport sees it: a :class:`pykvm.virtio.device.VirtioDevice`.

    The device owns ``image``. Its :class:`IoThreadGroup` owns the service of
    the queues, from activate() to reset(): threads, halts and the release of
    each queue. ``queue_stats`` has the counters of each queue, for the whole
    life of the device. ``failure`` is None, or the exception (a bug in pykvm)
    that ended the threads: the guest then sees DEVICE_NEEDS_RESET. The guest
    sees that also when the host lacks something that a queue needs, and the
    next activation may succeed.

    Each queue has its own planner, schedule and engine. The queues share the
    image, the parser, the error policy and the cache mode. Requests of
    different queues have no order, except that a flush covers all writes that
    were complete before it (virtio 1.2 §5.2.6.2).
    """

    device_id = VIRTIO_ID_BLOCK

    def __init__(
        self,
        image: Image,
        options: DiskOptions = DEFAULTS,
        *,
        engine: "EngineFactory" = SyncEngine,
        threads: Callable[..., IoThreadGroup] | None = None,
        hooks: DeviceHooks = NO_HOOKS,
        trace: "DiskTrace | None" = None,
    ) -> None:
        """The disk is read-only if ``image`` is. ``trace`` records each step.

        ``threads`` replaces the threads in tests (pykvm.testing.inline_threads).
        UsageError if the image cannot be a disk with these ``options``.
        """
        self.image = image
        self.queue_stats = tuple(Stats() for _ in range(options.num_queues))
        self.failure: BaseException | None = None
        self._options = options
        self._blocks = Blocks.choose(options, image.blocks, image.alignment)
        self._blocks.check(image.path, image.size)
        self._hooks = hooks
        self._trace = trace
        self._features = 0
        # Guards the activation and its parser: the driver changes them, and so does a resize.
        self._lock = threading.Lock()
        self._activation: Activation | None = None
        self._parser: RequestParser | None = None
        self._config = ConfigSpace(self.features, threading.Lock())
        self._config.set("capacity", image.capacity)
        describe(self._config, options, self._blocks, image.allocation.zeros_free_space)
        self._threads = (threads or IoThreadGroup)(
            f"virtio-blk {image.path}",
            options.iothreads,
            self._broken,
            self._failed,
            limits=options.limits,
            poll_max_ns=options.poll_max_ns,
            cpus=options.cpu_affinity,
        )
        self._cache = WriteCache(image, self._config, self._threads, hooks.over)
        self._assembly = Assembly(
            image,
            options,
            self._blocks.logical,
            engine,
            self.queue_stats,
            durable=self._cache.durable,
            decide=Failing(image, options, hooks, self._threads.halt).decide,
            trace=trace,
        )
        self._restoring = Restoring(
            image, self._config, self._cache, self._threads, self._assembly, trace
        )
        self._resizing = Resizing(
            image, self._blocks.logical, self._threads, self._capacity_changed
        )

    @property
    def features(self) -> int:
        """See VirtioDevice."""
        return offered(self._options, self.image.readonly)

    @property
    def queue_sizes(self) -> Sequence[int]:
        """See VirtioDevice."""
        return (self._options.queue_size,) * self._options.num_queues

    @property
    def config(self) -> bytes:
        """See VirtioDevice."""
        return self._config.bytes

    def write_config(self, offset: int, size: int, value: int) -> None:
        """See VirtioDevice. Only ``writeback`` is writable, by a driver that negotiated that."""
        where = (FIELDS["writeback"][0], 1)
        if (offset, size) == where and self._features & VIRTIO_BLK_F_CONFIG_WCE:
            self._cache.switch(bool(value))
            if self._trace is not None:
                self._trace.cache(self._cache.writeback)

    def negotiated(self, features: int) -> bool:
        """See VirtioDevice. Every subset of the offered features will do."""
        self._features = features
        self._cache.negotiated(features)
        if self._trace is not None:
            self._trace.negotiated(features)
        return True

    def queue_count(self, features: int) -> int:
        """See VirtioDevice. One without VIRTIO_BLK_F_MQ (§5.2.2)."""
        return self._options.num_queues if features & VIRTIO_BLK_F_MQ else 1

    def activate(self, activation: Activation) -> None:
        """See VirtioDevice."""
        assert self._activation is None, "reset comes before the next activation"
        self.failure = None
        if self._trace is not None:
            self._trace.activated([queue.size if queue else 0 for queue in activation.queues])
        with self._host_permitting():
            self._begin(activation)
            self._threads.start()
        if self._threads.halted_by(Halt.TRANSPORT):
            self._hooks.on_held()

    def save(self) -> Fields:
        """See VirtioDevice."""
        return self._restoring.save()

    def load(self, saved: Saved, activation: Activation | None) -> None:
        """See VirtioDevice. The image has the content and the size that the driver knows."""
        self._spoil_recording()
        queues = [queue for queue in activation.queues if queue] if activation else []
        parts = self._restoring.load_fields(saved, len(queues))
        if activation is not None:
            self.failure = None
            # If the host lacks something, nobody would execute the requests that were saved.
            services = self._begin(activation)
            self._restoring.load_services(services, parts, activation.ram, self._features)
            self._threads.start(halted=True)

    def load_in_place(self, saved: Saved) -> None:
        """See VirtioDevice. The threads stay."""
        self._threads.pause()
        self._spoil_recording()
        services = self._threads.services
        if self._trace is not None:
            self._trace.reset()
        parts = self._restoring.load_fields(saved, len(services))
        with self._lock:
            assert self._activation is not None, "an active device"
            assert self._parser is not None, "an active device"
            self._parser.capacity = self.image.capacity
            ram = self._activation.ram
        self._restoring.load_services(services, parts, ram, self._features)

    def _spoil_recording(self) -> None:
        if self._threads.recorder is not None:
            self._threads.recorder.spoil("the guest was put back meanwhile")

    def _begin(self, activation: Activation) -> list[QueueService]:
        """Make a service for each queue; they start with the threads."""
        with self._lock:
            self._activation = activation
            self._parser = self._assembly.parser(activation.ram, self._features)
        services = []
        for index, queue in enumerate(activation.queues):
            if queue is not None:
                services.append(self._service(index, queue))
                self._threads.add(services[-1])
        return services

    def stop_queue(self, index: int) -> None:
        """See VirtioDevice."""
        self._threads.remove(index)

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """See VirtioDevice."""
        with self._host_permitting():
            self._threads.add(self._service(index, queue))

    def hold(self) -> None:
        """See VirtioDevice."""
        self._threads.quieten(Halt.TRANSPORT, self._hooks.over)

    def release(self) -> None:
        """See VirtioDevice."""
        self._threads.resume(Halt.TRANSPORT)

    def reset(self) -> None:
        """See VirtioDevice."""
        self._threads.stop()
        if self._activation is not None and self._trace is not None:
            self._trace.reset()
        with self._lock:
            self._activation = self._parser = None
        self._features = 0
        self._cache.reset()

    @contextmanager
    def _host_permitting(self) -> Iterator[None]:
        """If the host lacks something within the block, serve nothing until reset."""
        try:
            yield
            return
        except (HostError, OSError) as error:
            lack = shortage(error)
            if not lack:
                raise
        self._threads.stop()
        self._lack(lack)

    def lacks(self, lack: str) -> None:
        """See VirtioDevice."""
        self._threads.stop()
        self._hooks.on_shortage(lack)

    def _lack(self, lack: str) -> None:
        try:
            self._broken(f"the host cannot serve the disk: {lack}")
        finally:
            self._hooks.on_shortage(lack)

    def _capacity_changed(self) -> None:
        if self._threads.recorder is not None:
            self._threads.recorder.spoil("the disk was resized meanwhile")
        capacity = self.image.capacity
        with self._lock:
            if self._parser is not None:
                self._parser.capacity = capacity
            self._config.set("capacity", capacity)
            if self._activation is not None:
                self._activation.config_changed()
        if self._trace is not None:
            self._trace.resized(capacity)

    def close(self) -> None:
        """See VirtioDevice. Closes the image."""
        self.reset()
        self._resizing.close()

    def _service(self, index: int, queue: Virtqueue) -> QueueService:
        """A service for ``queue``, with an engine of its own."""
        assert self._activation is not None, "only an active device serves"
        assert self._parser is not None, "only an active device serves"
        return self._assembly.service(self._activation, self._parser, index, queue)

    def _broken(self, reason: str) -> None:
        assert self._activation is not None, "only an active device has a thread"
        if self._trace is not None:
            self._trace.broken(reason)
        self._activation.broken(reason)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Exception) and (lack := shortage(error)):
            self._lack(lack)
            return
        self.failure = error
        try:
            self._broken(f"a bug in the virtio-blk device: {error!r}")
        finally:
            self._hooks.on_failure(error)
