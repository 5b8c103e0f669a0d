"""The disk's owner: pauses, resumes, resizes and limits it, makes it fail, and heals it."""

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
    """Owns a thread, which does jobs in turn. :meth:`work` adds a random job.

    Without being asked, it resumes the disk after an error that stopped it. While
    the disk is stopped, it holds ``guest``, as vCPUs are stopped then. It rests while
    the driver waits for the last answers; otherwise its jobs could wake up a disk
    that missed a notification.
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
        # Two threads draw random numbers, each from its own source.
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
        """Become the owner of ``device`` on ``transport``."""
        self._device = device
        self._transport = transport
        self._thread.start()

    def work(self) -> None:
        """Add a random job."""
        self._jobs.put(self._draw.choice(self._choices))

    def heard(self, error: IoError) -> None:
        """Record an error that the disk announces. The disk's threads call this."""
        self._announced.add(error, self._model.now)
        if error.action is ErrorAction.STOP:
            self._jobs.put(self._continue)

    def end(self, seconds: float) -> bool:
        """End the thread; True if it ended within ``seconds``."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        except BaseException as failure:
            self.failure = failure

    def _continue(self) -> None:
        """After an error that stopped the disk, pause it, perhaps heal it, and resume it."""
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
            assert self._device.pause(), "pause() without a timeout returned False"
            check_quiet(self._transport)
            self._device.resume()
        self.seen["pauses"] += 1

    def _limit(self) -> None:
        dice = self._dice
        if dice.random() < 0.6:  # almost no request gets through, but only for a moment
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
        assert self._plan is not None, "only owners with a plan break their disk"
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
        """Grow the disk while its driver uses it."""
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
        """Resize the disk while it is paused. Requests that it keeps may then be behind its end."""
        with self._guest:
            self._device.pause()
            self._resize_at_rest()
            self._device.resume()

    def _resize_at_rest(self) -> None:
        """Resize once, or twice in a row. Sometimes a second thread resumes the disk meanwhile."""
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
                assert meddles, "a disk at rest refused a size"
                assert capacity < self._model.capacity, "the disk refused to grow"
                continue
            # The guest is stopped, so no request was sent and no answer was read meanwhile.
            self._model.resizing(capacity)
            self._model.resized()
            self.seen["resizes"] += 1
        if meddles:
            other.join()
