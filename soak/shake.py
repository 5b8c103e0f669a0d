"""Has threads lose their turn in the middle of things, at random.

Python changes threads where it likes, which is nearly always elsewhere than in
the three instructions that matter. Here a thread often sleeps for a moment
before some lines of one module of the device, chosen for the whole run. What is
compiled has no lines; the threads and what hands over between them never is.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Any, Final

PACKAGE: Final = "pykvm.devices.virtio_blk"
ONE_IN: Final = (1, 4, 10, 10)
"""Of so many lines one is chosen, …"""
PROBABILITY: Final = (0.05, 0.2, 0.5, 0.5)
"""… and a thread sleeps there so often."""
LONGEST: Final = 2e-4
"""Seconds."""


class Shaker:
    """What :func:`threading.settrace` wants."""

    def __init__(self, module: str, dice: Random) -> None:
        self._module = f"{PACKAGE}.{module}"
        self._dice = dice
        self._one_in, self._probability = dice.choice(list(zip(ONE_IN, PROBABILITY, strict=True)))
        self._which = dice.randrange(self._one_in)

    def call(self, frame: FrameType, event: str, argument: object) -> Any:
        """A function was called."""
        return self.line if frame.f_globals.get("__name__") == self._module else None

    def line(self, frame: FrameType, event: str, argument: object) -> Any:
        """A line is about to run."""
        chosen = frame.f_lineno % self._one_in == self._which
        if chosen and self._dice.random() < self._probability:
            time.sleep(self._dice.random() * LONGEST)
        return self.line


@contextmanager
def shaken(module: str, dice: Random) -> Iterator[None]:
    """Threads that are started within are shaken in ``module``, if that is not empty."""
    if not module:
        yield
        return
    before = threading.gettrace()
    threading.settrace(Shaker(module, dice).call)
    try:
        yield
    finally:
        threading.settrace(before)
