"""Chooses the engine that executes a disk's operations."""

from typing import TYPE_CHECKING, NamedTuple

from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.modes import EngineKind
from pykvm.errors import HostError, UsageError
from pykvm.memory.ram import Ram

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory


class EngineChoice(NamedTuple):
    """A factory of engines, and the reason for the choice: a sentence without a full stop."""

    make: "EngineFactory"
    reason: str


def choose(image: Image, wanted: "EngineKind | EngineFactory") -> EngineChoice:
    """The engine for ``image``; a factory as ``wanted`` is returned as it is.

    By default, an image in the host's page cache has ``sync``, because copying
    memory takes less time than handing the operation to another thread. An image
    with O_DIRECT has io_uring, or ``threads`` if the host does not provide
    io_uring. UsageError if io_uring is wanted and the host does not provide it.
    """
    if not isinstance(wanted, EngineKind):
        return EngineChoice(wanted, "the caller's engine")
    if wanted is not EngineKind.AUTO:
        return EngineChoice(_factory(wanted), f"{wanted.value}, as asked")
    cache = f"cache={image.cache.value}"
    if not image.cache.direct:
        return EngineChoice(SyncEngine, f"sync, because {cache} uses the host's page cache")
    direct = f"{cache} bypasses the host's page cache"
    from pykvm.host import io_uring

    if problem := io_uring.problem():
        return EngineChoice(_threads(), f"threads, because {direct} and {problem}")
    return EngineChoice(_ring_or_threads(), f"io_uring, because {direct}")


def _factory(kind: EngineKind) -> "EngineFactory":
    if kind is EngineKind.SYNC:
        return SyncEngine
    if kind is EngineKind.THREADS:
        return _threads()
    from pykvm.host import io_uring

    if problem := io_uring.problem():
        raise UsageError(problem, "give the disk engine=auto or engine=threads")
    from pykvm.devices.virtio_blk.engines.uring import IoUringEngine

    return IoUringEngine


# Most runs need neither module, so they are not imported at the top. The others import them here:
# once the guest runs, the sandbox may forbid imports (pykvm/sandbox).


def _threads() -> "EngineFactory":
    from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine

    return ThreadsEngine


def _ring_or_threads() -> "EngineFactory":
    """Decides at each activation, because the host may have memory for one ring and not for two."""
    from pykvm.devices.virtio_blk.engines.uring import IoUringEngine

    threads = _threads()

    def make(image: Image, ram: Ram) -> "Engine":
        try:
            return IoUringEngine(image, ram)
        except HostError:
            return threads(image, ram)

    return make
