"""The disk's owner: stops it, lets it go on, resizes it, limits it, makes it fail, heals it."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue
from random import Random

from pykvm.devices.virtio_blk import ErrorAction, IoError, RateLimits, VirtioBlk
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.errors import UsageError
from pykvm.testing.fake_transport import FakeTransport
from soak.memory import check_quiet
from soak.model import SECTOR, Model
from soak.scenario import MOST_SECTORS, STEP
from soak.tally import Announced

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EINTR")
OPERATIONS = ("any", "any", "read", "write", "flush", "discard", "write-zeroes")


class Owner:
    """Owns a thread, which does one job after another: :meth:`work` asks for one.

    What it does by itself is to let the disk go on after an error that stopped
    it. While it stops the disk it holds ``guest``: vCPUs are stopped then. So
    that nothing it does can hide that the disk has fallen asleep, it rests when
    its driver waits for the last answers.
    """

    def __init__(
        self,
        model: Model,
        announced: Announced,
        plan: FaultPlan | None,
        dice: Random,
        guest: threading.RLock,
        resizable: bool,
        direct: bool,
    ) -> None:
        self.seen: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._model = model
        self._announced = announced
        self._plan = plan
        # Each of the two threads that draw has numbers of its own.
        self._dice = Random(dice.random())
        self._draw = Random(dice.random())
        self._guest = guest
        self._shorts = (0, 512, 1024, 4096) if direct else (0, 1, 512, 700, 4096)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._choices: list[Callable[[], None]] = [self._pause, self._limit, self._look]
        if plan is not None:
            self._choices += [self._break] * 4
        if resizable:
            self._choices += [self._grow, self._shrink]
        self._thread = threading.Thread(target=self._run, name="soak owner", daemon=True)

    def start(self, device: VirtioBlk, transport: FakeTransport) -> None:
        """Be the owner of ``device``, which ``transport`` carries."""
        self._device = device
        self._transport = transport
        self._thread.start()

    def work(self) -> None:
        """Have it do something."""
        self._jobs.put(self._draw.choice(self._choices))

    def heard(self, error: IoError) -> None:
        """The disk announces an error. Called in its threads."""
        self._announced.add(error, self._model.now)
        if error.action is ErrorAction.STOP:
            self._jobs.put(self._go_on)

    def end(self, seconds: float) -> bool:
        """Have it come to its end; whether it did within so many ``seconds``."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        except BaseException as failure:
            self.failure = failure

    def _go_on(self) -> None:
        """After an error that stopped the disk: it is stopped as a whole, healed, and resumed."""
        with self._guest:
            self._device.pause()
            if self._plan is not None and self._dice.random() < 0.6:
                self._plan.clear()
            if self._shrink in self._choices and self._dice.random() < 0.2:
                self._resize_at_rest()
            self._device.resume()
        self.seen["stops"] += 1

    def _pause(self) -> None:
        with self._guest:
            if self._dice.random() < 0.3:
                self._device.pause(0)
            assert self._device.pause(), "there was no limit"
            check_quiet(self._transport)
            self._device.resume()
        self.seen["pauses"] += 1

    def _limit(self) -> None:
        dice = self._dice
        if dice.random() < 0.6:  # next to nothing gets through, but for a moment only
            self._device.limits = RateLimits(bps=1000, bps_max=1, iops=1, iops_max=1)
            time.sleep(dice.choice((0, 0.002, 0.01)))
        self._device.limits = dice.choice(
            (
                RateLimits(),
                RateLimits(),
                RateLimits(iops=2000, iops_max=dice.choice((0, 1, 20))),
                RateLimits(bps_wr=20_000_000, iops_rd=3000, iops_size=4096),
                RateLimits(bps=30_000_000, bps_rd=20_000_000, iops_wr=5000, iops_wr_max=1),
            )
        )
        self.seen["limits"] += 1

    def _look(self) -> None:
        counts = self._device.stats.as_dict()
        assert min(counts.values()) >= 0, f"a counter is negative: {counts}"
        assert self._device.limits is not None

    def _break(self) -> None:
        assert self._plan is not None, "it is asked of those that have one"
        dice = self._dice
        if dice.random() < 0.3:
            self._plan.clear()
            return
        operation = dice.choice(OPERATIONS)
        effect = dice.choice(("errno", "errno", "short", "short", "both", "delay"))
        short = None
        if effect in ("short", "both") and operation != "flush":
            short = dice.choice(self._shorts)
        error = dice.choice(ERRORS) if effect in ("errno", "both") else 0
        self._plan.add(
            Fault(
                operation=operation,
                nth=dice.randint(1, 4),
                count=dice.choice((1, 2, 5, 20)),
                probability=dice.choice((0.3, 0.7, 1)),
                errno=error,
                short=short,
                delay_ms=0 if error or short is not None else dice.choice((0.1, 1, 4)),
            )
        )
        self.seen["faults"] += 1

    def _grow(self) -> None:
        """The disk grows under its driver."""
        with self._guest:
            capacity = self._model.capacity + STEP * self._dice.randint(1, 8)
            if capacity > MOST_SECTORS:
                return
            self._model.resizing(capacity)
        self._device.resize(capacity * SECTOR)
        with self._guest:
            self._model.resized()
        self.seen["resizes"] += 1

    def _shrink(self) -> None:
        """It is resized while it is paused, and what it keeps may be behind its end."""
        with self._guest:
            self._device.pause()
            self._resize_at_rest()
            self._device.resume()

    def _resize_at_rest(self) -> None:
        """Once, or twice before anybody looks. Sometimes somebody else resumes it meanwhile."""
        other = threading.Thread(target=self._device.resume, name="soak other owner")
        meddles = self._dice.random() < 0.3
        if meddles:
            other.start()
        for _ in range(self._dice.choice((1, 1, 2))):
            most = min(self._model.capacity, MOST_SECTORS) // STEP
            capacity = STEP * self._dice.randint(1, min(most + 2, 128))
            try:
                self._device.resize(capacity * SECTOR)
            except UsageError:
                assert meddles, "a disk at rest can have any size"
                assert capacity < self._model.capacity, "it can always grow"
                continue
            # The guest is stopped: nothing was sent or looked at meanwhile.
            self._model.resizing(capacity)
            self._model.resized()
            self.seen["resizes"] += 1
        if meddles:
            other.join()
