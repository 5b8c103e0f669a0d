"""The virtio block device (virtio 1.2 §5.2): features, configuration, life cycle."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pykvm.devices.virtio_blk.config_space import FIELDS, ConfigSpace
from pykvm.devices.virtio_blk.constants import (
    OPERATION_NAMES,
    SECTOR_SIZE,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_T_IN,
)
from pykvm.devices.virtio_blk.core.ordering import extent
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.core.request import Request, RequestParser
from pykvm.devices.virtio_blk.core.throttle import Throttle
from pykvm.devices.virtio_blk.core.zero_detection import ZeroDetector
from pykvm.devices.virtio_blk.engines.base import EngineFactory, SyncEngine
from pykvm.devices.virtio_blk.features import Blocks, accepted, describe, offered
from pykvm.devices.virtio_blk.hooks import NO_HOOKS, NO_SPACE, DeviceHooks, IoError
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.modes import DetectZeroes, ErrorAction
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.devices.virtio_blk.serving.io_thread_group import Halt, IoThreads
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.errors import HostError, UsageError, shortage
from pykvm.memory.ram import Ram
from pykvm.virtio.constants import VIRTIO_ID_BLOCK
from pykvm.virtio.device import Activation
from pykvm.virtio.queue import Virtqueue

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace

DEFAULTS: Final = DiskOptions()
LOOK_SECONDS: Final = 0.1
"""How often whoever waits for what executes looks whether the run is over."""


class VirtioBlk:
    """A disk whose queues are served by I/O threads, which live from activate() to reset().

    Implements :class:`pykvm.virtio.device.VirtioDevice`. ``image`` belongs to
    the device from now on. ``queue_stats`` has what each queue counts over the
    device's whole life. ``failure`` is None, or the exception (a bug in pykvm)
    that ended an I/O thread, and with it all: the guest then sees
    DEVICE_NEEDS_RESET. It sees that too where the host has not enough of
    something to serve a queue with; the next activation may fare better.

    Each queue has its own parser, planner, schedule and engine. They share the
    image, the error policy and the cache mode, and nothing orders requests of
    one queue after those of another but that a flush covers all writes that
    were complete before it (virtio 1.2 §5.2.6.2).
    """

    device_id = VIRTIO_ID_BLOCK

    def __init__(
        self,
        image: Image,
        options: DiskOptions = DEFAULTS,
        *,
        engine: EngineFactory = SyncEngine,
        threads: Callable[..., IoThreads] | None = None,
        hooks: DeviceHooks = NO_HOOKS,
        trace: "DiskTrace | None" = None,
    ) -> None:
        """The disk is read-only if ``image`` is. ``trace`` is told of each step.

        ``threads`` is for tests, which may want none (pykvm.testing.inline_threads).
        UsageError if the image cannot be a disk with these ``options``.
        """
        self.image = image
        self.queue_stats = tuple(Stats() for _ in range(options.num_queues))
        self.failure: BaseException | None = None
        self._options = options
        self._limits = Limits(requests=options.merge_max, bytes=image.max_transfer)
        self._blocks = Blocks.choose(options, image.blocks, image.alignment)
        self._blocks.check(image.path, image.size)
        self._engine_factory = engine
        self._threads_factory = threads or IoThreads
        self._hooks = hooks
        self._trace = trace
        self._features = 0
        self._activation: Activation | None = None
        self._services: dict[int, QueueService] = {}
        self._threads: IoThreads | None = None
        self._held = False
        self._parser: RequestParser | None = None
        # Held throughout a change of size, which may take long: only another one waits for it.
        self._resizing = threading.Lock()
        # Guards what follows, the services, and the configuration space with what is told there:
        # drivers and users change them.
        self._lock = threading.Lock()
        self._shrinking = False  # nothing is served before that is done
        self._rate_limits = options.limits
        self._throttle = _throttle(options.limits)
        self._config = ConfigSpace(self.features)
        self._config.set("capacity", image.capacity)
        describe(self._config, options, self._blocks, image.allocation.zeros_free_space)
        self._set_writeback(image.cache.writeback)

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

    @property
    def writeback(self) -> bool:
        """The present cache mode: writes may complete before they are on stable storage."""
        return self._writeback

    @property
    def stats(self) -> Stats:
        """What all queues together have counted by now."""
        return Stats.total(self.queue_stats)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """See VirtioDevice. ``writeback`` is writable, by a driver that knows it.

        A driver that switches to write-through need never flush again, so
        what was written before it did goes to stable storage now. If that
        fails, the cache stays write-back, as the driver can read there.
        """
        where = (FIELDS["writeback"][0], 1)
        if (offset, size) == where and self._features & VIRTIO_BLK_F_CONFIG_WCE:
            if self._writeback and not value:
                self._write_through()
            else:
                self._set_writeback(bool(value))
            if self._trace is not None:
                self._trace.cache(self._writeback)

    def _write_through(self) -> None:
        """Between the requests of before, which the sync is for, and others, which are durable."""
        self._quieten(Halt.CACHE)
        try:
            if not self.image.sync():
                self._set_writeback(False)
        finally:
            if self._threads is not None:
                self._threads.resume(Halt.CACHE)

    def _quieten(self, who: Halt) -> None:
        """Have nothing executing, as long as the run is not over. In the driver's thread."""
        threads = self._threads
        while threads is not None and not threads.pause(LOOK_SECONDS, who):
            if self._hooks.over():
                return

    def negotiated(self, features: int) -> bool:
        """See VirtioDevice. Every subset of what is offered will do.

        A driver that cannot flush begins in write-through (§5.2.5.2).
        """
        self._features = features
        if self._trace is not None:
            self._trace.negotiated(features)
        if not features & VIRTIO_BLK_F_FLUSH:
            self._set_writeback(False)
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
            self._start(activation)
        if self._held:
            self._hooks.on_held()

    def _start(self, activation: Activation) -> None:
        with self._lock:
            self._activation = activation
            self._parser = RequestParser(
                activation.ram,
                self.image.capacity,
                self.image.readonly,
                self._options.serial.encode("ascii"),
                # A driver that does not know of larger blocks cannot be asked for them.
                self._blocks.logical if self._features & VIRTIO_BLK_F_BLK_SIZE else SECTOR_SIZE,
                accepted(self._options, self._features),
            )
            for index, queue in enumerate(activation.queues):
                if queue is not None:
                    self._services[index] = self._service(index, queue)
        self._threads = self._threads_factory(
            f"virtio-blk {self.image.path}",
            list(self._services.values()),
            self._options.iothreads,
            self._broken,
            self._failed,
            poll_max_ns=self._options.poll_max_ns,
            cpus=self._options.cpu_affinity,
        )
        if self._held:
            self._threads.halt(Halt.TRANSPORT)
        with self._lock:
            if self._shrinking:
                self._threads.halt(Halt.RESIZE)
        self._threads.start()

    def stop_queue(self, index: int) -> None:
        """See VirtioDevice."""
        assert self._activation is not None, "only an active device has queues"
        service = self._services.get(index)
        if service is None:
            return  # the host could not serve it
        assert self._threads is not None, "what is served has a thread"
        self._threads.remove(service)
        with self._lock:
            del self._services[index]
        service.engine.close()

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """See VirtioDevice."""
        assert self._threads is not None, "only an active device has queues"
        with self._host_permitting():
            with self._lock:
                self._services[index] = service = self._service(index, queue)
            self._threads.add(service)

    def hold(self) -> None:
        """See VirtioDevice."""
        self._held = True
        self._quieten(Halt.TRANSPORT)

    def release(self) -> None:
        """See VirtioDevice."""
        self._held = False
        if self._threads is not None:
            self._threads.resume(Halt.TRANSPORT)

    def reset(self) -> None:
        """See VirtioDevice."""
        self._release()
        if self._activation is not None and self._trace is not None:
            self._trace.reset()
        with self._lock:
            self._activation = self._parser = None
        self._features = 0
        self._set_writeback(self.image.cache.writeback)

    @contextmanager
    def _host_permitting(self) -> Iterator[None]:
        """If the host has not enough for what is done within, serve nothing until reset."""
        try:
            yield
            return
        except (HostError, OSError) as error:
            lack = shortage(error)
            if not lack:
                raise
        self._release()
        self._lack(lack)

    def lacks(self, lack: str) -> None:
        """See VirtioDevice."""
        self._release()
        self._hooks.on_shortage(lack)

    def _lack(self, lack: str) -> None:
        try:
            self._broken(f"the host cannot serve the disk: {lack}")
        finally:
            self._hooks.on_shortage(lack)

    def _release(self) -> None:
        """Serve nothing any more, and free all that did."""
        if self._threads is not None:
            self._threads.stop()
            self._threads = None
        with self._lock:
            services = list(self._services.values())
            self._services.clear()
        for service in services:
            service.engine.close()

    def pause(self, timeout: float | None = None) -> bool:
        """Serve nothing from now on; whether nothing is executing, at last after ``timeout`` s.

        None: wait for as long as it takes. The driver must not run.
        """
        threads = self._threads
        return threads is None or threads.pause(timeout)

    def resume(self) -> None:
        """Go on after :meth:`pause` or after a failure with the action STOP.

        Requests that failed, and those that were waiting, start again in the
        order of the ring, before new ones. While the disk shrinks, they start
        when that is done; this does not wait for it.
        """
        with self._lock:  # not between a look whether the disk may shrink and the halt for that
            threads = self._threads  # which a reset may take away meanwhile
            if threads is not None:
                threads.resume()

    def resize(self, size: int) -> None:
        """Let the disk have ``size`` bytes from now on, and tell its driver. UsageError.

        It shrinks only while it is paused or has no driver: nothing may be on
        its way to what is cut off. If it is resumed or started meanwhile, it
        serves nothing before it has shrunk. Kept requests that go beyond the
        end fail when it is resumed. From any thread but the disk's own; it
        takes as long as the host does.
        """
        with self._resizing:
            if size < self.image.size:
                self._begin_to_shrink()
            try:
                self.image.resize(size, self._blocks.logical)
                with self._lock:
                    if self._parser is not None:
                        self._parser.capacity = self.image.capacity
                    self._config.set("capacity", self.image.capacity)
                    if self._activation is not None:
                        self._activation.config_changed()
            finally:
                if self._shrinking:
                    self._end_shrinking()
            if self._trace is not None:
                self._trace.resized(self.image.capacity)

    def _begin_to_shrink(self) -> None:
        with self._lock:
            threads = self._threads
            if self._services and not (threads and threads.quiet):
                raise UsageError(
                    f"the disk {self.image.path} cannot shrink while its guest runs",
                    "stop the guest, shrink the disk, and let the guest go on",
                )
            self._shrinking = True
            if threads is not None:
                threads.halt(Halt.RESIZE)

    def _end_shrinking(self) -> None:
        with self._lock:
            self._shrinking = False
            threads = self._threads
            if threads is not None:
                threads.resume(Halt.RESIZE)

    @property
    def limits(self) -> RateLimits:
        """How fast the disk may be."""
        return self._rate_limits

    @limits.setter
    def limits(self, limits: RateLimits) -> None:
        """From any thread; requests that wait go by the new ones, whose buckets are full."""
        with self._lock:
            self._rate_limits = limits
            self._throttle = _throttle(limits)
            for service in self._services.values():
                service.throttle = self._throttle
            threads = self._threads
        if threads is not None:
            threads.look_again()

    def close(self) -> None:
        """See VirtioDevice. Closes the image."""
        self.reset()
        with self._resizing:
            self.image.close()

    def _service(self, index: int, queue: Virtqueue) -> QueueService:
        """Has an engine of its own, which :meth:`stop_queue` and :meth:`_release` close."""
        activation, parser = self._activation, self._parser
        assert activation is not None, "only an active device serves"
        assert parser is not None, "only an active device serves"
        engine = self._engine_factory(self.image, activation.ram)
        service = QueueService(
            queue,
            activation.kicks[index],
            activation.ram,
            parser,
            Planner(self._options.merge, self._limits),
            engine,
            self.queue_stats[index],
            durable=self._durable,
            decide=self._decide,
            interrupt=activation.interrupt,
            trace=self._trace.queue(index) if self._trace is not None else None,
            detector=self._detector(activation.ram),
        )
        service.throttle = self._throttle
        return service

    def _detector(self, ram: Ram) -> ZeroDetector | None:
        wanted = self._options.detect_zeroes
        if wanted is DetectZeroes.OFF or self.image.readonly:
            return None
        return ZeroDetector(ram, wanted is DetectZeroes.UNMAP)

    def _set_writeback(self, writeback: bool) -> None:
        with self._lock:
            self._writeback = writeback
            self._config.set("writeback", writeback)

    def _durable(self) -> bool:
        """Is a write done only when it is on stable storage (§5.2.6.2)?

        A driver that knows no flush has no other way to get it there.
        """
        flushes = self._features & VIRTIO_BLK_F_FLUSH
        return not (flushes and self._writeback) and self.image.cache.syncs

    def _decide(self, request: Request) -> ErrorAction:
        image, reads = self.image, request.type == VIRTIO_BLK_T_IN
        error = request.error = image.cause(request.error, extent(request)[1])
        lost = image.sync_error != 0 and not reads
        policy = self._options.rerror if reads else self._options.werror
        action = policy.action(full=error in NO_SPACE and not lost)
        name = OPERATION_NAMES[request.type]
        with self._hooks.telling:
            if action is ErrorAction.STOP:
                assert self._threads is not None, "only an active device has requests"
                self._threads.halt()
            self._hooks.on_error(IoError(name, request.sector, request.length, error, action, lost))
        return action

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


def _throttle(limits: RateLimits) -> Throttle | None:
    return Throttle(limits, threading.Lock()) if limits else None
