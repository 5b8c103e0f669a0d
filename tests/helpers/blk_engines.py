"""The engines by name, and helpers for tests of all engines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from blk_operations import readable
from patience import PATIENCE

from pykvm.devices.virtio_blk import Engine, EngineFactory, Image, SyncEngine
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine
from pykvm.devices.virtio_blk.engines.uring import IoUringEngine
from pykvm.devices.virtio_blk.layers.faults import FaultPlan
from pykvm.host import io_uring
from pykvm.memory.guest import GuestMemory
from pykvm.memory.ram import Ram

PATIENCE_MS = int(1000 * PATIENCE)


def _small_ring(image: Image, ram: Ram) -> Engine:
    return IoUringEngine(image, ram, entries=4)


_PLAIN: dict[str, EngineFactory] = {
    "sync": SyncEngine,
    "threads": ThreadsEngine,
    "io_uring": IoUringEngine,
    "small ring": _small_ring,
}
_needs_ring = pytest.mark.skipif(bool(io_uring.problem()), reason=io_uring.problem() or "-")


def engines(names: Iterable[str] = _PLAIN, wrapped: bool = True) -> Callable[..., object]:
    """Parametrizes ``factory``; ``wrapped``: also with an engine around each that injects faults.

    Not one of its faults happens, but everything passes through it.
    """
    found = []
    for name in names:
        factory = _PLAIN[name]
        marks = [_needs_ring] if "ring" in name else []
        found.append(pytest.param(factory, id=name, marks=marks))
        if wrapped:
            again = FaultPlan().wrap(factory)
            found.append(pytest.param(again, id=f"{name}, wrapped", marks=marks))
    return pytest.mark.parametrize("factory", found)


@contextmanager
def engine_on(image: Image, factory: EngineFactory, ram_size: int) -> Iterator[tuple[Engine, Ram]]:
    """An engine for ``image`` with ``ram_size`` bytes of RAM; all three are closed at the end."""
    memory = GuestMemory(ram_size)
    engine = factory(image, memory.ram)
    try:
        yield engine, memory.ram
    finally:
        engine.close()
        image.close()
        memory.close()


def run(engine: Engine, operations: Sequence[Operation]) -> list[tuple[int, int]]:
    """Execute ``operations``; their :func:`results`."""
    engine.submit(operations)
    wait(engine, len(operations))
    return results(operations)


def results(operations: Sequence[Operation]) -> list[tuple[int, int]]:
    """(errno, bytes moved) of each operation, all of which have completed."""
    assert all(op.finished_ns for op in operations)
    return [(op.error, op.moved) for op in operations]


def wait(engine: Engine, count: int) -> list[Operation]:
    """Sleep by the notifier until there are ``count`` completions; there must not be more."""
    done = list(engine.completions())
    while len(done) < count:
        assert engine.notifier >= 0, f"{len(done)} of {count} are done"
        assert readable(engine.notifier, PATIENCE_MS), f"{len(done)} of {count} are done"
        done += engine.completions()
    assert len(set(done)) == len(done) == count
    assert not engine.completions()
    return done
