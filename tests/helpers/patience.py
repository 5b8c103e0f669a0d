"""How long tests wait for other threads, processes and guests.

A limit in a test is in seconds of a fast host at rest, with a wide margin.
:func:`patience` stretches it to this host, by the time that a piece of work took at the
start of the session, and by the number of processes that want a CPU now. For tests that run
Linux, the work is the boot that makes the template of the session's guests. pytest-timeout's
limits are stretched by the same factor (``conftest.py``). Only a failing test waits for its
limit, so limits make no test slower.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread

from checkout import ROOT

PYTHON_WORK = [sys.executable, "-c", "import pykvm.cli.main, pykvm.machine"]
PYTHON_SECONDS = 0.1
"""The time of PYTHON_WORK on a fast host at rest."""
LINUX_WORK = [sys.executable, "-m", "pykvm", "boot", "guest", "--exec", "true"]
LINUX_SECONDS = 3.0
"""The time of LINUX_WORK on a fast host where KVM emulates kernel code, without a template."""
LINUX_PATIENCE = 150.0
"""Seconds for the longest run of the Linux guest on such a host."""
MOST = 30.0
"""The largest factor; guests count their limits in 32 bits of µs."""


def patience(seconds: float = 60.0) -> float:
    """``seconds`` of a fast host at rest, stretched for this host now. Not for boots of Linux."""
    return seconds * min(python_slowness() * crowd(), MOST)


def linux_patience(seconds: float = LINUX_PATIENCE) -> float:
    """The same for tests that boot the Linux guest."""
    return seconds * min(max(python_slowness(), linux_slowness()) * crowd(), MOST)


def crowd() -> float:
    """The number of processes that want each CPU, averaged over the last minute; at least 1."""
    return max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


@cache
def python_slowness() -> float:
    """The factor by which Python's work takes longer here than on a fast host; at least 1."""
    return max(_time(PYTHON_WORK) / PYTHON_SECONDS, 1.0)


@cache
def linux_slowness() -> float:
    """The same for a boot of Linux. The tests tell if it boots at all.

    The first process of the session that asks measures it, and leaves it in the session's cache.
    """
    with Path(os.environ["PYKVM_CACHE"], "linux-slowness").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = file.read()
        slowness = float(known) if known else max(_time(LINUX_WORK) / LINUX_SECONDS, 1.0)
        if not known:
            file.write(str(slowness))
    return slowness


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
"""Seconds after which an expected event counts as missing; no passing test waits so long."""


def until(condition: Callable[[], object], what: str = "it did not happen") -> None:
    """Wait until ``condition`` holds; ``what`` is the message if it never does."""
    deadline = time.monotonic() + patience()
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def in_thread(function: Callable[[], object]) -> Thread:
    """Run ``function`` in a new thread, and return the thread."""
    thread = Thread(target=function)
    thread.start()
    return thread


def ends(thread: Thread) -> bool:
    """True if ``thread`` ends."""
    thread.join(patience())
    return not thread.is_alive()


def goes_on(thread: Thread) -> bool:
    """True if ``thread`` has not ended after a moment: a short check, which never fails wrongly."""
    thread.join(0.03)
    return thread.is_alive()
