"""One scenario from its beginning to its end."""

import mmap
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

from pykvm.devices.virtio_blk import VirtioBlk
from pykvm.devices.virtio_blk.hooks import DeviceHooks
from pykvm.devices.virtio_blk.layers.faults import FaultPlan
from pykvm.devices.virtio_blk.open import DiskConfig, open_image
from pykvm.memory.ram import Ram, Region
from pykvm.testing.fake_transport import FakeTransport
from soak.driver import Driver
from soak.dump import dump
from soak.host import NoHoles, small_files
from soak.inspect import Inspector
from soak.judge import Judge
from soak.memory import Slots
from soak.model import SECTOR, Model
from soak.owner import Owner
from soak.scenario import Scenario, negotiate
from soak.shake import shaken
from soak.syncs import Syncs
from soak.tally import Announced, Tally

RINGS: Final = 256 << 10
"""Bytes of guest RAM for each queue's ring and its tables."""
SLOTS_AT: Final = 0x4000_0000
SMALL, LARGE = (160, 16 << 10), (8, 96 << 10)
"""The number of requests that have memory at a time, and the bytes of each."""
STEPS: Final = {
    "send": 35,
    "ask": 25,
    "collect": 8,
    "wait": 12,
    "settle": 8,
    "work": 18,
    "renew": 4,
    "restart": 2,
    "spoil": 1,
    "cache": 3,
    "hold": 2,
}
"""The weights of the driver's actions."""


class SoakFailure(AssertionError):
    """A scenario in which the disk broke a rule."""


class Run:
    """The parts of one scenario."""

    def __init__(self, scenario: Scenario, folder: Path, patience: float) -> None:
        self._patience = patience
        self._steps = scenario.steps
        self._dice = dice = Random(f"run {scenario.seed}")
        self._guest = guest = threading.RLock()
        self._failure: BaseException | None = None
        self._beat = 0
        self._bugs: list[BaseException] = []
        self._undo = ExitStack()
        with ExitStack() as undo:
            path = folder / "disk"
            content = dice.randbytes(scenario.sectors * SECTOR - scenario.ragged)
            path.write_bytes(content)
            undo.callback(path.unlink)
            plan = FaultPlan(seed=scenario.seed) if dice.random() < 0.6 else None
            config = DiskConfig(path=path, faults=plan, **scenario.disk)
            with small_files() if scenario.cut else nullcontext():
                image, engine, _ = open_image(config)
            image.max_transfer = scenario.transfer or image.max_transfer
            if not scenario.holes:
                image.allocation = NoHoles(image.fd)
            self.model = Model(content + bytes(scenario.ragged))
            announced, tally = Announced(), Tally()
            resizable = not config.readonly
            self.owner = Owner(
                self.model, announced, plan, dice, guest, resizable, config.cache.direct
            )
            self.device = VirtioBlk(
                image,
                config,
                engine=engine,
                hooks=DeviceHooks(on_error=self.owner.heard, on_failure=self._bugs.append),
            )
            undo.callback(self.device.close)
            apart = config.readonly or config.snapshot
            self.inspector = Inspector(path, self.model, tally, announced, apart)
            undo.callback(self.inspector.close)
            ram = self._memory(undo, config.num_queues)
            features = negotiate(dice, self.device.features)
            self.transport = FakeTransport(self.device, ram, features=features)
            undo.callback(self.transport.close)
            slots = Slots(ram, SLOTS_AT, SMALL, LARGE)
            syncs = Syncs(self.model, image, scenario.disk["engine"])
            judge = Judge(self.model, tally, announced, syncs, config.serial)
            self.driver = Driver(
                self.transport,
                self.device,
                self.model,
                judge,
                slots,
                syncs,
                dice,
                guest,
                patience,
                config.readonly,
            )
            self._undo = undo.pop_all()

    def _memory(self, undo: ExitStack, queues: int) -> Ram:
        rings = queues * RINGS
        size = SMALL[0] * SMALL[1] + LARGE[0] * LARGE[1]
        memory = mmap.mmap(-1, rings + size)
        undo.callback(memory.close)
        view = memoryview(memory)
        undo.callback(view.release)
        ram = Ram(view, [Region(0, rings, 0), Region(SLOTS_AT, size, rings)])
        undo.callback(ram.release)
        return ram

    def play(self) -> Counter[str]:
        """Play the scenario; return the counts of its events. SoakFailure."""
        self.driver.start()
        self.owner.start(self.device, self.transport)
        thread = threading.Thread(target=self._drive, name="soak driver", daemon=True)
        thread.start()
        self._await(thread)
        if self._failure is None and not self.owner.end(self._patience):
            self._failure = AssertionError("the disk's owner does not come to its end")
        failure = self.owner.failure or next(iter(self._bugs), None) or self._failure
        if failure is not None:
            text = f"{type(failure).__name__}: {failure}"
            state = dump(self.transport, self.device, self.driver)
            self._give_up()
            raise SoakFailure(f"{text}\n{state}") from failure
        self._undo.close()
        return (
            self.driver.seen
            + self.owner.seen
            + Counter(answered=self.driver.answered, lost=self.driver.lost)
        )

    def _await(self, thread: threading.Thread) -> None:
        """Wait until the driver is done, or has been idle for too long."""
        beat, since = (0, 0), time.monotonic()
        while thread.is_alive():
            thread.join(0.05)
            now = time.monotonic()
            if (self._beat, self.driver.answered) != beat:
                beat, since = (self._beat, self.driver.answered), now
            elif now - since > 1.5 * self._patience:
                self._failure = AssertionError("the driver waits for the device, and for ever")
                return
            if self.owner.failure or self._bugs:
                thread.join(2 * self._patience)
                return

    def _drive(self) -> None:
        try:
            names, weights = list(STEPS), list(STEPS.values())
            for _ in range(self._steps):
                if self.owner.failure or self._bugs:
                    return
                self._beat += 1
                self._step(self._dice.choices(names, weights)[0])
            self._settle()
        except BaseException as failure:
            self._failure = failure

    def _step(self, name: str) -> None:
        driver = self.driver
        match name:
            case "wait":
                driver.wait()
            case "ask":  # without a later request that would wake the device
                with self._guest:
                    driver.send()
                driver.settle()
            case "settle":
                self._settle()
            case "work":
                self.owner.work()
            case "spoil":
                driver.spoil()
            case _:
                actions: dict[str, Callable[[], object]] = {
                    "send": driver.send,
                    "collect": driver.collect,
                    "renew": driver.renew,
                    "restart": driver.restart,
                    "cache": driver.switch_cache,
                    "hold": driver.hold,
                }
                with self._guest:
                    actions[name]()

    def _settle(self) -> None:
        self.driver.settle()
        with self._guest:
            if self.driver.idle:
                self.inspector.inspect(self.device, self.driver.lost)

    def _give_up(self) -> None:
        """Close all parts that can be closed, and leave those that hang."""

        def close() -> None:
            try:
                self._undo.close()
            except (AssertionError, BufferError, OSError):
                return

        self.owner.end(0.1)
        closing = threading.Thread(target=close, name="soak end", daemon=True)
        closing.start()
        closing.join(self._patience)


def play(scenario: Scenario, patience: float) -> Counter[str]:
    """Play ``scenario``; return the counts of its events, by name. SoakFailure.

    ``patience``: seconds after which something that was to happen has not.
    """
    threads, descriptors = set(threading.enumerate()), _descriptors()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(scenario.switch_interval)
    try:
        with (
            shaken(scenario.shaken, Random(scenario.seed)),
            TemporaryDirectory(prefix="pykvm-soak-") as folder,
        ):
            seen = Run(scenario, Path(folder), patience).play()
    finally:
        sys.setswitchinterval(interval)
    left = set(threading.enumerate()) - threads
    if left:
        raise SoakFailure(f"threads are left: {', '.join(thread.name for thread in left)}")
    if _descriptors() != descriptors:
        raise SoakFailure(f"descriptors are left: {_descriptors()}, before {descriptors}")
    return seen


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
