"""Which engine executes a disk's operations, and why."""

from typing import NamedTuple

from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.modes import EngineKind
from pykvm.errors import HostError, UsageError
from pykvm.memory.ram import Ram


class EngineChoice(NamedTuple):
    """An engine's maker, and a sentence without a full stop for people: what it is, and why."""

    make: EngineFactory
    reason: str


def choose(image: Image, wanted: EngineKind | EngineFactory) -> EngineChoice:
    """The engine for ``image``; a maker of engines stands for itself.

    By default a file in the host's page cache has ``sync``, because a copy out
    of memory is over before anybody else could be asked for it, and a disk
    that is met with O_DIRECT has io_uring, or ``threads`` where the host does
    not let us have that. UsageError if io_uring is wanted and not to be had.
    """
    if not isinstance(wanted, EngineKind):
        return EngineChoice(wanted, "an engine of the caller's")
    if wanted is not EngineKind.AUTO:
        return EngineChoice(_factory(wanted), f"{wanted.value}, as asked")
    cache = f"cache={image.cache.value}"
    if not image.cache.direct:
        return EngineChoice(SyncEngine, f"sync, for {cache} uses the host's page cache")
    direct = f"{cache} goes past the host's page cache"
    from pykvm.host import io_uring

    if problem := io_uring.problem():
        return EngineChoice(_threads(), f"threads, for {direct}, and {problem}")
    return EngineChoice(_ring_or_threads(), f"io_uring, for {direct}")


def _factory(kind: EngineKind) -> EngineFactory:
    if kind is EngineKind.SYNC:
        return SyncEngine
    if kind is EngineKind.THREADS:
        return _threads()
    from pykvm.host import io_uring

    if problem := io_uring.problem():
        raise UsageError(problem, "give the disk engine=auto or engine=threads")
    from pykvm.devices.virtio_blk.engines.uring import IoUringEngine

    return IoUringEngine


# Most runs need neither module: they are not imported at the top. Those that do import them now,
# for when the guest runs, its process may be confined and unable to (pykvm/sandbox).


def _threads() -> EngineFactory:
    from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine

    return ThreadsEngine


def _ring_or_threads() -> EngineFactory:
    """Judges at each activation: a host may have had room for one ring and not for the next."""
    from pykvm.devices.virtio_blk.engines.uring import IoUringEngine

    threads = _threads()

    def make(image: Image, ram: Ram) -> Engine:
        try:
            return IoUringEngine(image, ram)
        except HostError:
            return threads(image, ram)

    return make
