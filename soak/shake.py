"""Makes threads sleep at random places in a module.

Python rarely switches threads in the few instructions where a race can happen. Here
threads often sleep for a moment before some lines of one module of the device. These
are the same in the whole run. Compiled modules have no lines, so their threads do not
sleep there.
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
"""One in this number of lines is chosen, …"""
PROBABILITY: Final = (0.05, 0.2, 0.5, 0.5)
"""… and a thread sleeps there with this probability."""
LONGEST: Final = 2e-4
"""The longest sleep, in seconds."""


class Shaker:
    """The callbacks for :func:`threading.settrace`."""

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
    """Shake threads that start in this context in ``module``, unless that is empty."""
    if not module:
        yield
        return
    before = threading.gettrace()
    threading.settrace(Shaker(module, dice).call)
    try:
        yield
    finally:
        threading.settrace(before)
