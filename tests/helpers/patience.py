"""How long tests wait for what happens in another thread, process or guest.

A limit in a test is written in seconds of a fast host at rest, with plenty to
spare, and :func:`patience` stretches it to the host at hand. It goes by how long a
piece of work took at the start of the session, and by how many processes want a
CPU now. pytest-timeout's limits are stretched alike (``conftest.py``). Only what
fails waits that long, so none of these limits makes a test slower.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from threading import Thread

from checkout import ROOT

PYTHON_WORK = [sys.executable, "-c", "import pykvm.cli.main, pykvm.machine"]
PYTHON_SECONDS = 0.1
"""What PYTHON_WORK takes on a fast host at rest."""
LINUX_WORK = [sys.executable, "-m", "pykvm", "boot", "guest", "--exec", "true"]
LINUX_SECONDS = 3.0
"""What LINUX_WORK takes on a fast one of the hosts where KVM emulates kernel code."""
LINUX_PATIENCE = 150.0
"""Seconds for the longest run of the Linux guest on such a host."""
MOST = 30.0
"""Nothing is stretched more often than this; guests count their limits in 32 bits of µs."""


def patience(seconds: float = 60.0) -> float:
    """``seconds`` of a fast host at rest, as this host is now. For what does not boot Linux."""
    return seconds * min(python_slowness() * crowd(), MOST)


def linux_patience(seconds: float = LINUX_PATIENCE) -> float:
    """The same for what boots the Linux guest."""
    return seconds * min(max(python_slowness(), linux_slowness()) * crowd(), MOST)


def crowd() -> float:
    """How many processes want each CPU, by the average of the last minute; at least 1."""
    return max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


@cache
def python_slowness() -> float:
    """How many times longer than on a fast host Python's work takes here; at least 1."""
    return max(_time(PYTHON_WORK) / PYTHON_SECONDS, 1.0)


@cache
def linux_slowness() -> float:
    """The same for a boot of Linux. Whether it boots at all is for the tests to say."""
    return max(_time(LINUX_WORK) / LINUX_SECONDS, 1.0)


def _time(work: Sequence[str]) -> float:
    began = time.monotonic()
    # An end for hosts on which it never ends, where nothing is stretched further.
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(
            work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=MOST * LINUX_SECONDS,
            cwd=ROOT,
        )
    return time.monotonic() - began


PATIENCE = patience()
"""Seconds after which something that was to happen has not; nothing waits so long and passes."""


def until(condition: Callable[[], object], what: str = "it did not happen") -> None:
    """Return once ``condition`` holds; ``what`` is the message if it never does."""
    deadline = time.monotonic() + patience()
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
    thread.join(patience())
    return not thread.is_alive()


def goes_on(thread: Thread) -> bool:
    """Is ``thread`` still waiting for something? A short look: no proof, but never wrong."""
    thread.join(0.03)
    return thread.is_alive()
