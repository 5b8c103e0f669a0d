"""The I/O thread under load: pauses, errors that stop, resumes and resets at any moment.

Whatever happens when: every request is answered exactly once, and its status,
its data and its used length are as if the requests of a batch had been
executed one after another, each once. While the disk is paused its engine is
asked for nothing. The faults depend on the seed alone; when what happens
does not, and must not matter.
"""

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

import pytest
from blk_bench import (
    SECTORS,
    Bench,
    EngineScript,
    Short,
    asked,
    benches,
    ends,
    in_thread,
)

from pykvm.devices.virtio_blk import (
    ErrorAction,
    ErrorPolicy,
    Image,
    IoError,
    MergePolicy,
    SyncEngine,
)
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.memory.ram import Ram

OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
REGIONS = 4
"""Batches in flight. Each has its own part of the disk: their order is open (virtio 1.2 §2.7)."""


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
    """Executes what it was given in any order; what has not started at a stop is cancelled."""

    def __init__(self, script: EngineScript, image: Image, ram: Ram) -> None:
        self.notifier = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
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

    def signs(self) -> None:
        return None

    def stop(self) -> None:
        with self._state:
            self._stopped = True

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()
        assert ends(self._thread)
        os.close(self.notifier)


@dataclass(frozen=True, eq=False)
class Sent:
    """A request in flight: ``data`` of a write, ``sectors`` of a read or a write."""

    kind: str
    head: int
    sector: int = 0
    sectors: int = 0
    data: bytes = b""
    queue: int = 0


class Driver:
    """Sends random batches, and checks each against a model of the disk when it is answered."""

    def __init__(self, bench: Bench, path: Path, seed: int) -> None:
        self.bench = bench
        self.path = path
        self.dice = random.Random(seed)
        self.model = bytearray(path.read_bytes())
        self.flying: list[list[Sent]] = []
        self.queues = len(bench.transport.drivers)
        self.by_head: dict[tuple[int, int], Sent] = {}
        self.answers: dict[Sent, tuple[int, bytes]] = {}
        self.good: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def send(self, number: int) -> None:
        """Batch ``number``: up to 12 requests, many of them side by side or over each other.

        They are in one queue, the next batch in the next: no order is kept between queues.
        """
        queue = number % self.queues
        start = number % REGIONS * (SECTORS // REGIONS)
        end = start + SECTORS // REGIONS
        batch, sector = [], start
        self._collect()
        for _ in range(self.dice.randint(1, 12)):
            if self.dice.random() < 0.4:
                sector = self.dice.randrange(start, end)
            sectors = self.dice.randint(1, 4)
            sector = min(sector, end - sectors)
            batch.append(self._send(sector, sectors, queue))
            sector += sectors
        self.by_head.update(((queue, sent.head), sent) for sent in batch)
        self.flying.append(batch)
        self.bench.kick(queue)

    def _send(self, sector: int, sectors: int, queue: int) -> Sent:
        kind = self.dice.choice(("read", "read", "write", "write", "write", "flush"))
        if kind == "flush":
            return Sent(kind, self.bench.flush(queue), queue=queue)
        if kind == "read":
            head = self.bench.read(sector, sectors, queue)
            return Sent(kind, head, sector, sectors, queue=queue)
        data = self.dice.randbytes(512 * sectors)
        head = self.bench.write(sector, data, queue)
        return Sent(kind, head, sector, sectors, data, queue)

    def _collect(self) -> None:
        """Note the answers so far; their heads may then be used again."""
        transport = self.bench.transport
        for queue in range(self.queues):
            transport.collect(queue)
        for queue, head in list(transport.done):
            # KeyError: answered, though it is not in flight.
            self.answers[self.by_head.pop((queue, head))] = self.bench.wait(head, queue)

    def _answer(self, sent: Sent) -> tuple[int, bytes]:
        if sent not in self.answers:
            answer = self.bench.wait(sent.head, sent.queue)
            self.answers[self.by_head.pop((sent.queue, sent.head))] = answer
            self._collect()
        return self.answers.pop(sent)

    def check(self) -> None:
        """Wait for the oldest batch, and compare it with the model."""
        batch = self.flying.pop(0)
        answers = [self._answer(sent) for sent in batch]
        for sent, (status, data) in zip(batch, answers, strict=True):
            span = slice(sent.sector * 512, (sent.sector + sent.sectors) * 512)
            (self.good if status == OK else self.failed)[sent.kind] += 1
            assert status in (OK, IOERR)
            if status == OK and sent.kind == "read":
                assert data == self.model[span]
            elif status == OK:
                self.model[span] = sent.data

    def finish(self) -> None:
        """Wait for everything; the file is as the model, and nothing was answered twice."""
        while self.flying:
            self.check()
        assert self.path.read_bytes() == self.model
        assert self.by_head == {}
        for queue, driver in enumerate(self.bench.transport.drivers):
            assert self.bench.answered(queue) == []
            assert driver.outstanding == {}

    def forget(self) -> None:
        """A reset: what was in flight is lost, and nobody knows how far it came."""
        for lost in (self.flying, self.by_head, self.answers):
            lost.clear()  # type: ignore[attr-defined]
        self.model[:] = self.path.read_bytes()


class Owner:
    """Does what the owner of a disk does: stops everything at an error, goes on; also just so.

    ``stops`` and ``pauses`` count, and ``busy`` what was found executing
    within one, where nothing is to execute. It never pauses while it is held, by
    ``with owner.hands_off``.
    """

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.stops = self.pauses = self.busy = 0
        self.hands_off = threading.Lock()
        self._dice = random.Random(seed)
        self._over = False
        self._news = threading.Condition()
        self._stopped = 0
        bench.device._on_error = self._heard
        self._thread = in_thread(self._run)

    def _heard(self, error: IoError) -> None:
        with self._news:
            self._stopped += error.action is ErrorAction.STOP
            self._news.notify_all()

    def _run(self) -> None:
        device, script = self.bench.device, self.bench.script
        while True:
            with self._news:
                after = self._dice.choice((0.0, 0.001, 0.003))
                stopped = self._news.wait_for(lambda: self._stopped or self._over, after)
                if self._over and not self._stopped:
                    return
                self._stopped = 0
            with self.hands_off:
                device.pause()
                at = len(script.log)
                self.busy += script.executing
                for queue in range(len(self.bench.transport.drivers)):
                    self.bench.transport.notify(queue)
                self.busy += len(script.log) - at
                device.resume()
            self.stops += bool(stopped)
            self.pauses += not stopped

    def __enter__(self) -> "Owner":
        return self

    def __exit__(self, *exc: object) -> None:
        with self._news:
            self._over = True
            self._news.notify_all()
        assert ends(self._thread)


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


def run(driver: Driver, batches: int) -> None:
    for number in range(batches):
        driver.send(number)
        if len(driver.flying) == REGIONS:
            driver.check()
        if number % 30 == 29:
            driver.finish()
    driver.finish()


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
            run(driver, 90)
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
            run(driver, 90)
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
            run(driver, 10)


def reset(bench: Bench, path: Path) -> None:
    """What was executing is awaited; from then on the rings, the file and the guest are left."""
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
