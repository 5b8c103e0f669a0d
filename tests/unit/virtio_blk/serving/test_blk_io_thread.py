"""The I/O thread under load: pauses, errors that stop, resumes and resets at any moment.

In every case each request is answered exactly once. Its status, its data and its
used length are as if the requests of a batch had been executed one after another,
each once. A paused disk submits nothing to its engine. The faults depend on the
seed alone. The moments of pauses and resets do not, and must not matter.
"""

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns

import pytest
from blk_bench import Bench, EngineScript, Short, asked, benches
from blk_load import Driver, Owner
from patience import ends, in_thread

from pykvm.devices.virtio_blk import (
    ErrorPolicy,
    Image,
    MergePolicy,
    SyncEngine,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram


class SeededFaults:
    """Every third attempt or so at a request fails, at most twice in a row; the same each time."""

    def __init__(self, seed: int, errors: Sequence[int], *, short: bool) -> None:
        self._seed = seed
        self._errors = errors
        self._short = short
        self._attempts: Counter[object] = Counter()

    def __call__(self, operation: Operation) -> int | Short:
        if len(operation.members) > 1:
            bad = any(self._random(r.type, r.sector).random() < 0.3 for r in operation.members)
            return errno.EIO if bad else 0
        what = asked(operation)
        self._attempts[what] += 1
        chance = self._random(what, self._attempts[what])
        if self._attempts[what] % 3 == 0 or chance.random() > 0.35:
            return 0
        if self._short and operation.length > 512 and chance.random() < 0.3:
            return Short(512)
        return chance.choice(self._errors)

    def _random(self, *what: object) -> random.Random:
        return random.Random(f"{self._seed} {what}")


class WorkerScript(EngineScript):
    """Makes engines with a thread of their own, which take their time and keep no order."""

    def engine(self, image: Image, ram: Ram) -> "WorkerEngine":  # type: ignore[override]
        return WorkerEngine(self, image, ram)


class WorkerEngine:
    """Executes operations in any order. A stop cancels those that have not started."""

    def __init__(self, script: EngineScript, image: Image, ram: Ram) -> None:
        self.notifier = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.immediate = False
        self._script = script
        self._inner = SyncEngine(image, ram)
        self._state = script.changed
        self._pending: list[Operation] = []
        self._done: list[Operation] = []
        self._stopped = self._closed = False
        self._thread = in_thread(self._run)

    def _run(self) -> None:
        dice = random.Random(1)
        while True:
            with self._state:
                self._state.wait_for(lambda: self._pending or self._closed)
                if not self._pending:
                    return
                operation = self._pending.pop(dice.randrange(len(self._pending)))
                cancelled = self._stopped
            fate = errno.ECANCELED if cancelled else self._script.fails(operation)
            if isinstance(fate, Short):
                part = Operation()
                part.clip(operation, 0, fate.moved)
                self._inner.submit([part])
                operation.moved = part.moved
            elif fate:
                operation.error = fate
            else:
                self._inner.submit([operation])
            self._inner.completions()
            operation.finished_ns = monotonic_ns()
            with self._state:
                self._done.append(operation)
                os.eventfd_write(self.notifier, 1)

    def submit(self, operations: Sequence[Operation]) -> None:
        with self._state:
            self._script.log += [asked(operation) for operation in operations]
            self._script.executing += len(operations)
            self._pending += operations
            self._state.notify_all()

    def completions(self) -> Sequence[Operation]:
        with suppress(BlockingIOError):
            os.eventfd_read(self.notifier)
        with self._state:
            done, self._done = self._done, []
            self._script.executing -= len(done)
        return done

    def watch(self, watch: Watch) -> bool:
        return False

    def stop(self) -> None:
        with self._state:
            self._stopped = True

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()
        assert ends(self._thread)
        os.close(self.notifier)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def workers(seed: int, worker: bool, errors: Sequence[int], short: bool) -> EngineScript:
    faults = SeededFaults(seed, errors, short=short)
    return WorkerScript(faults) if worker else EngineScript(faults)


@pytest.fixture(params=[False, True], ids=["at once", "in a thread"])
def worker(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Does the engine take its time?"""
    yield request.param
    assert [t.name for t in threading.enumerate() if t.name.startswith("virtio-blk")] == []


@pytest.fixture(params=[(1, 1), (2, 1), (3, 3)], ids="{0[0]} queues, {0[1]} threads".format)
def queues(request: pytest.FixtureRequest) -> dict[str, int]:
    """Options for a disk."""
    return dict(zip(("num_queues", "iothreads"), request.param, strict=True))


@pytest.mark.parametrize("merge", list(MergePolicy))
def test_stops_and_pauses_under_load(
    path: Path, worker: bool, merge: MergePolicy, queues: dict[str, int]
) -> None:
    """Whatever fails stops the disk, and succeeds in the end: nothing fails for the guest."""
    stop = ErrorPolicy.STOP
    script = workers(1, worker, (errno.ENOSPC, errno.EIO), short=True)
    with benches(path, rerror=stop, werror=stop, merge=merge, **queues) as make:
        bench = make(script)
        driver = Driver(bench, path, seed=2)
        with Owner(bench, seed=3) as owner:
            driver.run(90)
        assert owner.stops > 20
        assert not owner.busy
        stats = bench.stats()
        for kind, name in (("read", "rd"), ("write", "wr"), ("flush", "flush")):
            assert stats[f"{name}_operations"] == driver.good[kind] > 0
        assert not driver.failed
        assert not any(name.startswith(("failed", "invalid")) for name in stats)


def test_some_errors_are_reported_and_some_stop(
    path: Path, worker: bool, queues: dict[str, int]
) -> None:
    enospc = ErrorPolicy.ENOSPC
    script = workers(4, worker, (errno.ENOSPC, errno.EIO), short=False)
    with benches(path, rerror=enospc, werror=enospc, **queues) as make:
        bench = make(script)
        driver = Driver(bench, path, seed=5)
        with Owner(bench, seed=6) as owner:
            driver.run(90)
        assert owner.stops > 20
        assert not owner.busy
        stats = bench.stats()
        for kind, name in (("read", "rd"), ("write", "wr"), ("flush", "flush")):
            assert stats[f"{name}_operations"] == driver.good[kind] > 0
            assert stats[f"failed_{name}_operations"] == driver.failed[kind] > 0


def test_resets_under_load(path: Path, worker: bool, queues: dict[str, int]) -> None:
    """Halted or serving: after a reset nothing comes, and the disk works again."""
    stop = ErrorPolicy.STOP
    script = workers(7, worker, (errno.ENOSPC,), short=True)
    with benches(path, rerror=stop, werror=stop, **queues) as make:
        bench = make(script)
        driver = Driver(bench, path, seed=8)
        with Owner(bench, seed=9) as owner:
            for round_ in range(30):
                for number in range(4):
                    driver.send(number)
                if round_ % 2:
                    driver.check()
                with owner.hands_off:
                    reset(bench, path)
                    driver.forget()
                    bench.transport.start()
            driver.run(10)


def reset(bench: Bench, path: Path) -> None:
    """It awaits the operations in flight. Afterwards rings, file and guest are left alone."""
    queues = range(len(bench.transport.drivers))
    bench.device.reset()
    for queue in queues:
        bench.transport.collect(queue)
    before = path.read_bytes(), len(bench.transport.interrupts)
    bench.device.resume()
    bench.device.pause()
    assert not any(bench.answered(queue) for queue in queues)
    assert (path.read_bytes(), len(bench.transport.interrupts)) == before
    bench.transport.reset()
