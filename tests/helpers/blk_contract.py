"""Runs a script of requests through a planner and a schedule, and checks the contract.

The contract itself, with its numbers, is at the top of test_blk_contract.py.
"""

import errno
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from blk_requests import FLUSH, IN, OUT
from blk_script import LONGEST, SECTOR, SECTORS, Item, Script

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.planner import Planner
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.core.scheduler import Schedule
from pykvm.devices.virtio_blk.modes import ErrorAction, MergePolicy
from pykvm.hot.words import longs

STOP = ErrorAction.STOP
REQUESTS = 32
AREA = 8192
"""Guest RAM of one request: its segments, with bytes between them that must not change."""
DISK = Random(0).randbytes(SECTORS * SECTOR)
DATA = [Random(head + 1).randbytes(LONGEST) for head in range(REQUESTS)]
GUARD = 0xEE


class BrokenContractError(AssertionError):
    """A clause of the contract does not hold."""


def hold(clause: str, holds: bool) -> None:
    if not holds:
        raise BrokenContractError(clause)


@dataclass(eq=False)
class Life:
    """The executor's record of a request.

    ``drain`` is the number of its plan. ``done`` are its bytes that were finally
    executed since it was planned, ``errors`` the errors of its own operations since
    then. ``read`` is the buffer at the answer.
    """

    request: Request
    drain: int
    data: bytes
    done: int = 0
    errors: list[int] = field(default_factory=list)
    answered: bool = False
    read: bytes = b""


class Run:
    """Executes ``script`` with a planner and a schedule; ``seen`` counts what happened."""

    def __init__(
        self,
        script: Script,
        planner: type[Planner] = Planner,
        schedule: type[Schedule] = Schedule,
    ) -> None:
        self.script = script
        self.seen: Counter[str] = Counter()
        self.disk = bytearray(DISK)
        self.ram = bytearray([GUARD]) * (AREA * REQUESTS)
        self.lives: list[Life] = []
        self.pool: list[Operation] = []
        self.undefined: set[int] = set()
        self.bad = dict(script.bad)
        self._tape = iter(script.tape)
        self._drains = iter(script.drains)
        self._left = len(script.drains)
        self._plans = 0
        self._resumes = 0
        self._decided: list[Request] = []
        made = planner(script.policy, script.limits)
        made.durable = script.durable
        self.schedule = schedule(made, self._decide)

    def run(self) -> None:
        """Run from the first drain to the last answer; BrokenContractError."""
        for _ in range(3000):
            if not self._step():
                break
            self._take()
        hold("1: each request is answered", all(life.answered for life in self.lives))
        hold("1: nothing is left", self.schedule.executing == 0)
        self._compare()

    def _next(self, choices: int) -> int:
        return next(self._tape, 0) % choices

    def _step(self) -> bool:
        """Take one step; False if there is none left."""
        schedule = self.schedule
        choice = self._next(8)
        if choice == 7 and not schedule.halted:
            self.seen["halt"] += 1
            schedule.halt()
        elif choice == 6 and self._left and not schedule.halted:
            self._add()
        elif self.pool:
            self._execute(self.pool.pop(self._next(len(self.pool))))
        elif schedule.halted:
            self._resume()
        elif self._left:
            self._add()
        else:
            return False
        return True

    # -- requests ---------------------------------------------------------

    def _add(self) -> None:
        self._left -= 1
        self._plans += 1
        previous = 0
        requests: list[Request] = []
        for item in next(self._drains):
            start = previous if item.place < 0 else item.place
            count = min(item.sectors, SECTORS - start)
            if item.kind == FLUSH:
                start = count = 0
            elif not count or not self._may_send(item, start, count):
                continue
            else:
                previous = start + count
            if len(self.lives) == REQUESTS:
                break
            requests.append(self._request(item, start, count))
        if not requests:
            return
        planned = self.schedule.add(requests)
        self.seen["merged"] += sum(len(operation.members) > 1 for operation in planned)
        self.seen["split"] += sum(request.pending > 1 for request in requests)
        self.seen["waits"] += sum(operation.waits > 0 for operation in planned)

    def _may_send(self, item: Item, start: int, count: int) -> bool:
        """False, mostly, for a request that conflicts with executing ones: drivers avoid that."""
        for life in self.lives:
            other = life.request
            if not life.answered and life.drain != self._plans and OUT in (item.kind, other.type):
                common = set(range(start, start + count)) & set(sectors_of(other))
                if common and not item.rude:
                    return False
                self.undefined |= common
        return True

    def _request(self, item: Item, start: int, count: int) -> Request:
        request = Request(len(self.lives))
        request.type, request.sector, request.length = item.kind, start, count * SECTOR
        at, left = request.head * AREA + AREA, request.length
        offsets, lengths = [], []
        while left:  # the first segment is the last in memory, none touches another
            size = min(left, item.cut)
            at -= size + 8
            offsets.append(at)
            lengths.append(size)
            left -= size
        request.offsets, request.lengths = longs(offsets), longs(lengths)
        request.last = len(offsets)
        data = DATA[request.head][: request.length] if item.kind == OUT else b""
        scatter(self.ram, request, data)
        self.lives.append(Life(request, self._plans, data))
        return request

    # -- operations -------------------------------------------------------

    def _take(self) -> list[Operation]:
        halted = self.schedule.halted
        taken = self.schedule.take()
        hold("6: nothing starts while halted", not (halted and taken))
        for operation in taken:
            self._check_start(operation)
            self.pool.append(operation)
        return taken

    def _check_start(self, operation: Operation) -> None:
        limit = self.script.limits
        members = [self.lives[request.head] for request in operation.members]
        segments = operation.lengths[operation.first : operation.last]
        hold("1: an operation starts once", operation not in self.pool)
        hold("1: no request starts after its answer", not any(m.answered for m in members))
        hold("4: members", 1 <= len(members) <= limit.requests)
        hold("4: segments", len(segments) <= limit.segments)
        hold("4: bytes", sum(segments) == operation.length <= limit.bytes)
        hold("3: directions", {m.request.type for m in members} == {operation.kind})
        hold("3: durable", operation.durable == self.script.durable)
        if operation.kind == FLUSH:
            hold("3: a flush is alone", len(members) == 1)
            earlier = (m for m in self.lives[: members[0].request.head] if m.request.type == OUT)
            hold("5: a flush waits for earlier writes", all(m.answered for m in earlier))
        for other in self.pool:
            if OUT in (other.kind, operation.kind) and overlap(other, operation):
                drains = {self.lives[other.members[0].head].drain, members[0].drain}
                hold("5: overlapping operations run one by one", len(drains) > 1)

    def _execute(self, operation: Operation) -> None:
        """Carry out the operation, fully, in part, or not, by the tape and the bad sectors."""
        length, single = operation.length, len(operation.members) == 1
        good = self._good_bytes(operation)
        operation.moved = min(good, length)
        choice = self._next(8)
        if choice >= 6 or good < length or (operation.kind == FLUSH and choice == 5):
            operation.moved = min(good, (0, 100, 700, 4096)[self._next(4)])
            short = choice in (1, 3, 4) and operation.kind != FLUSH
            operation.error = 0 if short else (errno.EIO, errno.ENOSPC)[choice & 1]
        elif choice == 5:
            operation.moved = min(good, (0, 1, 512, 600)[self._next(4)])
        self._transfer(operation)
        short = not operation.error and operation.moved < length
        if operation.error or short:
            self.seen["short" if short else "failed"] += 1
            self.seen["failed merged"] += not single
        failed = operation.error or (errno.EIO if short and not operation.moved else 0)
        self.seen["left"] += operation.left > 0
        if failed and single:
            self.lives[operation.members[0].head].errors.append(failed)
        elif single or not (failed or short):
            self._account(operation)
        members = list(operation.members)  # the operation itself may be used again
        answers = self.schedule.finish(operation)
        hold("1: only members are answered", set(answers) <= set(members))
        for request in answers:
            self._answer(request)

    def _good_bytes(self, operation: Operation) -> int:
        """The bytes of ``operation`` before the first bad sector."""
        first = operation.offset // SECTOR
        end = -(-(operation.offset + operation.length) // SECTOR)
        bad = [s for s in range(first, end) if s in self.bad[operation.kind]]
        return max(bad[0] * SECTOR - operation.offset, 0) if bad else operation.length

    def _transfer(self, operation: Operation) -> None:
        at, left = operation.offset, operation.moved
        for index in range(operation.first, operation.last):
            start = operation.offsets[index]
            size = min(left, operation.lengths[index])
            if operation.kind == OUT:
                self.disk[at : at + size] = self.ram[start : start + size]
            else:
                self.ram[start : start + size] = self.disk[at : at + size]
            at += size
            left -= size

    def _account(self, operation: Operation) -> None:
        if len(operation.members) == 1:
            self.lives[operation.members[0].head].done += operation.moved
            return
        for request in operation.members:
            self.lives[request.head].done += request.length
        total = sum(request.length for request in operation.members)
        hold("2: a merged operation is its members", total == operation.length)

    # -- answers ----------------------------------------------------------

    def _decide(self, request: Request) -> ErrorAction:
        action = self.script.actions[request.type]
        life = self.lives[request.head]
        hold("3: no error that was not met", request.error in life.errors[:1])
        self._decided.append(request)
        self.seen[f"action {action.value}"] += 1
        return action

    def _answer(self, request: Request) -> None:
        life = self.lives[request.head]
        action = self.script.actions[request.type]
        hold("1: each request is answered once", not life.answered)
        life.answered = True
        decided = request in self._decided
        hold("3: the policy is asked once", decided == bool(life.errors))
        hold("3: a request that fails with stop is kept", not (life.errors and action is STOP))
        reported = bool(life.errors) and action is ErrorAction.REPORT
        status = VIRTIO_BLK_S_IOERR if reported else VIRTIO_BLK_S_OK
        hold("3: the status is the truth", request.status == status)
        hold("3: error is the first one met", request.error == next(iter(life.errors), 0))
        whole = life.done == request.length
        hold("2: each byte is executed once", whole or bool(life.errors))
        life.read = gather(self.ram, request) if request.type == IN else b""

    def _resume(self) -> None:
        self.seen["resume"] += 1
        self._resumes += 1
        self._plans += 1
        if self._resumes > self.script.repaired_after:
            for kind, action in self.script.actions.items():
                if action is STOP:
                    self.bad[kind] = frozenset()
        self._decided.clear()
        for life in self.lives:
            if not life.answered:
                self.seen["resumed requests"] += 1
                life.drain, life.done = self._plans, 0
                life.errors.clear()
        self.schedule.resume()
        if self.script.policy in (MergePolicy.OFF, MergePolicy.SEQUENTIAL):  # they sort nothing
            started = [operation.members[0].head for operation in self._take()]
            hold("6: ring order", started == sorted(started))

    def _compare(self) -> None:
        """The disk and the data read, if the requests run one after another in ring order."""
        disk: list[bytes | None] = [
            DISK[i * SECTOR : (i + 1) * SECTOR] if i not in self.undefined else None
            for i in range(SECTORS)
        ]
        for life in self.lives:
            request = life.request
            for i, sector in enumerate(sectors_of(request)):
                part = slice(i * SECTOR, (i + 1) * SECTOR)
                if sector in self.undefined:
                    continue
                if request.type == OUT:
                    disk[sector] = None if life.errors else life.data[part]
                elif not life.errors and disk[sector] is not None:
                    hold("2: the same is read", life.read[part] == disk[sector])
        for i, expected in enumerate(disk):
            if expected is not None:
                hold("2: the same bytes", self.disk[i * SECTOR : (i + 1) * SECTOR] == expected)
        for life in self.lives:
            data = b"" if life.request.type == IN else life.data
            if data:
                hold("2: writes leave memory alone", gather(self.ram, life.request) == data)
            scatter(self.ram, life.request, bytes([GUARD]) * life.request.length)
        hold("2: nothing else is touched", self.ram.count(GUARD) == len(self.ram))


def sectors_of(request: Request) -> range:
    return range(request.sector, request.sector + request.length // SECTOR)


def overlap(one: Operation, other: Operation) -> bool:
    return one.offset < other.offset + other.length and other.offset < one.offset + one.length


def scatter(ram: bytearray, request: Request, data: bytes) -> None:
    """Put ``data``, if there is any, into the request's segments."""
    for start, size in zip(request.offsets, request.lengths, strict=True):
        if data:
            ram[start : start + size] = data[:size]
            data = data[size:]


def gather(ram: bytearray, request: Request) -> bytes:
    """The contents of the request's segments."""
    return b"".join(
        ram[start : start + size]
        for start, size in zip(request.offsets, request.lengths, strict=True)
    )
