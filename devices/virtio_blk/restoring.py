"""The state of a block device in a snapshot, but for what its transport knows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pykvm.devices.virtio_blk.assembly import Assembly
from pykvm.devices.virtio_blk.config_space import ConfigSpace
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.serving.io_thread_group import IoThreadGroup
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.devices.virtio_blk.write_cache import WriteCache
from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace

_MOST_ERRNO: Final = 4095


class Restoring:
    """Saves the state of a device, and has its parts take it over."""

    def __init__(
        self,
        image: Image,
        config: ConfigSpace,
        cache: WriteCache,
        threads: IoThreadGroup,
        assembly: Assembly,
        trace: "DiskTrace | None",
    ) -> None:
        self._image = image
        self._config = config
        self._cache = cache
        self._threads = threads
        self._assembly = assembly
        self._trace = trace
        self._loaded = False  # since the last resume

    def save(self) -> Fields:
        """The state of the device, which is paused."""
        return {
            "writeback": self._cache.writeback,
            "sync_error": self._image.sync_error,
            **self._threads.save(),
        }

    def load_fields(self, saved: Saved, queues: int) -> list[Saved]:
        """Load all but the ``queues``, and return their parts. SnapshotError."""
        image = self._image
        self._config.set("capacity", image.capacity)
        self._cache.load(saved.flag("writeback"))
        image.sync_error = image.sync_error or saved.integer("sync_error", 0, _MOST_ERRNO)
        self._threads.load_levels(saved)
        parts = saved.parts("queues", queues)
        saved.end()
        return parts

    def load_services(
        self, services: Sequence[QueueService], parts: Sequence[Saved], ram: Ram, features: int
    ) -> None:
        """Load ``services``, in the order of their queues, from ``parts``. SnapshotError."""
        if self._trace is not None:
            sizes = {service.queue.index: service.queue.size for service in services}
            self._trace.activated([sizes.get(at, 0) for at in range(max(sizes, default=-1) + 1)])
        for service, part in zip(services, parts, strict=True):
            self._assembly.load(service, part, ram, features)
        self._loaded = True

    def resumed(self) -> None:
        """Repeat the interrupts: the guest that was saved may not have received the last ones."""
        if self._loaded:
            self._loaded = False
            for service in self._threads.services:
                service.interrupt()
