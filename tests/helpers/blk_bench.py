"""A disk on a fake transport, whose engine acts only when a test tells it to, and as told.

::

    script = EngineScript(fails=fail_once("write", 5, errno.ENOSPC), slow=True)
    with Bench(path, script, werror=ErrorPolicy.STOP) as bench:
        head = bench.write(5, data)
        bench.kick()
        script.wait_for(1)             # the engine has it
        script.release()               # and carries it out, or fails
        (error,) = bench.wait_errors(1)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from threading import Condition, Event, Thread
from time import monotonic_ns

from blk_device import block_device
from patience import PATIENCE, in_thread

from pykvm.devices.virtio_blk import ErrorPolicy, Image, MergePolicy, SyncEngine
from pykvm.devices.virtio_blk.constants import (
    OPERATION_NAMES,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.hooks import IoError
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport

SECTORS = 256

Asked = tuple[str, int, int]
"""(kind, sector, sectors) of an operation."""


@dataclass(frozen=True, slots=True)
class Short:
    """The engine moves this number of bytes and stops, without an error."""

    moved: int


Fails = Callable[[Operation], "int | Short"]
"""The errno with which an operation fails, 0 if it does not, or how much of it is done."""


def asked(operation: Operation) -> Asked:
    """An operation that an engine got."""
    return OPERATION_NAMES[operation.kind], operation.offset // 512, operation.length // 512


def touches(operation: Operation, sector: int) -> bool:
    """True if ``operation`` covers ``sector``. A flush covers 0."""
    if operation.kind == VIRTIO_BLK_T_FLUSH:
        return sector == 0
    return 0 <= sector * 512 - operation.offset < operation.length


class Faults:
    """``{(kind, sector): [result of the first request, of the next, …]}``.

    An operation for several requests fails as its first bad sector will, and
    uses nothing up: the requests come again one by one.
    """

    def __init__(self, plan: "dict[tuple[str, int], list[int | Short]]") -> None:
        self.plan = plan

    def __call__(self, operation: Operation) -> int | Short:
        for (kind, sector), outcomes in self.plan.items():
            if outcomes and kind == OPERATION_NAMES[operation.kind] and touches(operation, sector):
                return outcomes[0] if len(operation.members) > 1 else outcomes.pop(0)
        return 0


class EngineScript:
    """Directs the engines of a disk. ``log`` has the operations that they got, in order.

    ``executing`` are the operations that the engines have now. ``stopped`` is set
    when an engine was told to start no more. Engines carry out, or fail, an
    operation at its submission; with ``slow``, when :meth:`release` is called.
    """

    def __init__(self, fails: Fails = lambda operation: 0, *, slow: bool = False) -> None:
        self.fails = fails
        self.slow = slow
        self.log: list[Asked] = []
        self.executing = 0
        self.stopped = Event()
        self.changed = Condition()
        self.waiting: list[tuple[ScriptedEngine, Operation]] = []

    def engine(self, image: Image, ram: Ram) -> "ScriptedEngine":
        """Make an engine, as an EngineFactory does."""
        return ScriptedEngine(self, image, ram)

    def wait_for(self, count: int) -> None:
        """Wait until exactly ``count`` operations wait to be released."""
        with self.changed:
            reached = self.changed.wait_for(lambda: len(self.waiting) == count, PATIENCE)
            assert reached, f"{[asked(operation) for _, operation in self.waiting]} wait"

    def release(self, index: int = 0) -> None:
        """Carry out the waiting operation at ``index``."""
        with self.changed:
            engine, operation = self.waiting.pop(index)
            engine.execute(operation)
            # With the lock, the engine cannot be closed before the operation has been taken.
            os.eventfd_write(engine.notifier, 1)

    def take_log(self) -> list[Asked]:
        """Return the contents of ``log``, and empty it."""
        with self.changed:
            log, self.log = self.log, []
        return log


class ScriptedEngine:
    """See :class:`EngineScript`. Operations that wait at a reset count as executing."""

    def __init__(self, script: EngineScript, image: Image, ram: Ram) -> None:
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.notifier = os.eventfd(0, flags) if script.slow else -1
        self.immediate = False
        self._script = script
        self._inner = SyncEngine(image, ram)
        self._done: list[Operation] = []

    def submit(self, operations: Sequence[Operation]) -> None:
        script = self._script
        with script.changed:
            script.log += [asked(operation) for operation in operations]
            script.executing += len(operations)
            if script.slow:
                script.waiting += [(self, operation) for operation in operations]
                script.changed.notify_all()
                return
            for operation in operations:
                self.execute(operation)

    def execute(self, operation: Operation) -> None:
        fate = self._script.fails(operation)
        if isinstance(fate, Short):
            part = Operation()
            part.clip(operation, 0, fate.moved)
            self._inner.submit([part])
            self._inner.completions()
            operation.moved = part.moved
        elif fate:
            operation.error = fate
        else:
            self._inner.submit([operation])
            self._inner.completions()
        operation.finished_ns = monotonic_ns()
        self._done.append(operation)

    def completions(self) -> Sequence[Operation]:
        if self.notifier >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self.notifier)
        with self._script.changed:
            done, self._done = self._done, []
            self._script.executing -= len(done)
        return done

    def watch(self, watch: Watch) -> bool:
        return False

    def stop(self) -> None:
        self._script.stopped.set()

    def close(self) -> None:
        assert not self._done, "completions were left behind"
        if self.notifier >= 0:
            os.close(self.notifier)


class Bench:
    """A started device with a driver. ``options`` are those of block_device().

    ``on_error``, which tests may replace, is called with each error.
    """

    def __init__(
        self, path: Path, script: EngineScript, readonly: bool = False, **options: object
    ) -> None:
        self.script = script
        self.errors: list[IoError] = []
        self._told = Condition()
        self.on_error: Callable[[IoError], None] = self.note
        options = {"on_error": self._heard, **options}
        self.device = block_device(Image(path, readonly), engine=script.engine, **options)
        self.transport = FakeTransport(self.device)
        self.transport.start()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *exc: object) -> None:
        # Operations that a failed test leaves executing must not keep the device from closing.
        closing = in_thread(self.transport.close)
        while closing.is_alive():
            if self.script.waiting:
                self.script.release()
            closing.join(0.001)
        self.device.close()

    def _heard(self, error: IoError) -> None:
        self.on_error(error)

    def note(self, error: IoError) -> None:
        """Take an error, as the ``on_error`` of the device."""
        with self._told:
            self.errors.append(error)
            self._told.notify_all()

    def wait_errors(self, count: int) -> list[IoError]:
        """Wait for ``count`` errors; return all errors so far."""
        with self._told:
            assert self._told.wait_for(lambda: len(self.errors) >= count, PATIENCE), self.errors
            return list(self.errors)

    @property
    def io_thread(self) -> Thread:
        """The device's first I/O thread."""
        return self.device._threads._threads[0]._thread

    def send(
        self, kind: int, sector: int = 0, data: bytes = b"", size: int = 0, queue: int = 0
    ) -> int:
        """Put a request into the ring without publishing it; return its head."""
        header = pack("<IIQ", kind, 0, sector)
        readable = [header, data] if data else [header]
        return self.transport.drivers[queue].send(readable, [size, 1] if size else [1])

    def read(self, sector: int, sectors: int = 1, queue: int = 0) -> int:
        return self.send(VIRTIO_BLK_T_IN, sector, size=512 * sectors, queue=queue)

    def write(self, sector: int, data: bytes, queue: int = 0) -> int:
        return self.send(VIRTIO_BLK_T_OUT, sector, data, queue=queue)

    def flush(self, queue: int = 0) -> int:
        return self.send(VIRTIO_BLK_T_FLUSH, queue=queue)

    def kick(self, queue: int = 0) -> None:
        """Publish sent requests and notify, even if the device does not want it."""
        self.transport.drivers[queue].publish()
        self.transport.notify(queue)

    def wait(self, head: int, queue: int = 0) -> tuple[int, bytes]:
        """Wait for the answer, and check its used length; return (status, data)."""
        used = self.transport.wait(head, queue, timeout=PATIENCE)
        answer = self.transport.drivers[queue].response(head)
        if len(answer) > 1:
            assert used in ((len(answer), 0) if answer[-1] == VIRTIO_BLK_S_OK else (0,))
        else:
            assert used == 1
        return answer[-1], answer[:-1]

    def answered(self, queue: int = 0) -> list[int]:
        """The heads in the used ring that were not collected yet, in its order."""
        return [head for head, _ in self.transport.collect(queue)]

    def stats(self) -> dict[str, int]:
        """The counters that are not 0, without times."""
        counters = self.device.stats.as_dict().items()
        return {name: n for name, n in counters if n and not name.endswith("_ns")}


Maker = Callable[..., Bench]
"""Makes a bench from a script and the options of its disk."""


@contextmanager
def benches(path: Path, **defaults: object) -> Iterator[Maker]:
    """Makes disks on ``path``, which is full of "o" at first, and closes them at the end."""
    path.write_bytes(b"o" * 512 * SECTORS)
    made: list[Bench] = []

    def make(script: EngineScript, **options: object) -> Bench:
        made.append(Bench(path, script, **{**defaults, **options}))  # type: ignore[arg-type]
        return made[-1]

    try:
        yield make
    finally:
        for bench in made:
            bench.__exit__()


def stopping_benches(path: Path, **defaults: object) -> AbstractContextManager[Maker]:
    """:func:`benches` whose disks stop at every error and merge nothing, unless told otherwise."""
    stop = {"rerror": ErrorPolicy.STOP, "werror": ErrorPolicy.STOP}
    return benches(path, **{**stop, "merge": MergePolicy.OFF, **defaults})


def sector_of(path: Path, sector: int) -> bytes:
    """The content of ``sector`` of the disk at ``path``."""
    return path.read_bytes()[sector * 512 :][:512]


def fill(letter: str) -> bytes:
    """A sector full of ``letter``."""
    return letter.encode() * 512
