"""Random load on a disk, checked against a model, and an owner that stops it meanwhile."""

import random
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from blk_bench import SECTORS, Bench
from patience import ends, in_thread

from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK

OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
REGIONS = 4
"""Batches in flight. Each has a separate part of the disk, because their order is undefined
(virtio 1.2 §2.7)."""


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
        """Record the answers so far; their heads may then be used again."""
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
        """Wait for all requests; check the file by the model, and that no answer came twice."""
        while self.flying:
            self.check()
        assert self.path.read_bytes() == self.model
        assert self.by_head == {}
        for queue, driver in enumerate(self.bench.transport.drivers):
            assert self.bench.answered(queue) == []
            assert driver.outstanding == {}

    def run(self, batches: int) -> None:
        """Send this number of batches and check them; sometimes wait for all in flight."""
        for number in range(batches):
            self.send(number)
            if len(self.flying) == REGIONS:
                self.check()
            if number % 30 == 29:
                self.finish()
        self.finish()

    def forget(self) -> None:
        """Forget the requests in flight after a reset; their effect is unknown."""
        for lost in (self.flying, self.by_head, self.answers):
            lost.clear()  # type: ignore[attr-defined]
        self.model[:] = self.path.read_bytes()


class Owner:
    """Acts as the owner of a disk: stops it at an error and resumes it; also without an error.

    ``stops`` and ``pauses`` are numbers. ``busy`` is the number of operations that
    executed during a pause, which must be 0. It never pauses within
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
        bench.on_error = self._heard
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
