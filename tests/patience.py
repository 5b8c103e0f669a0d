"""How tests wait for what happens in another thread or process."""

import time
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds after which something that was to happen has not; nothing waits so long and passes."""


def until(condition: Callable[[], object], what: str = "it did not happen") -> None:
    """Return once ``condition`` holds; ``what`` is the message if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)
