"""How tests wait for what happens in another thread or process."""

import time
from collections.abc import Callable
from threading import Thread

PATIENCE = 20.0
"""Seconds after which something that was to happen has not; nothing waits so long and passes."""


def until(condition: Callable[[], object], what: str = "it did not happen") -> None:
    """Return once ``condition`` holds; ``what`` is the message if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def in_thread(function: Callable[[], object]) -> Thread:
    """``function`` at work in another thread."""
    thread = Thread(target=function)
    thread.start()
    return thread


def ends(thread: Thread) -> bool:
    """Does ``thread`` come to its end?"""
    thread.join(PATIENCE)
    return not thread.is_alive()


def goes_on(thread: Thread) -> bool:
    """Is ``thread`` still waiting for something? A short look: no proof, but never wrong."""
    thread.join(0.03)
    return thread.is_alive()
