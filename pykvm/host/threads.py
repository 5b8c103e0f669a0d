"""Threads as the host sees them: their names, and the CPUs on which they may run."""

import os
import threading
from collections.abc import Collection
from contextlib import suppress
from itertools import groupby

from pykvm.errors import HostError
from pykvm.host.libc import prctl
from pykvm.host.limits import thread_advice
from pykvm.lean.typing_names import Final

MAX_CPUS: Final = 8192
"""The largest number that Linux supports (CONFIG_NR_CPUS)."""

_PR_SET_NAME = 15


def show_thread_name(name: str) -> None:
    """Let ``ps -L`` and ``top -H`` show the calling thread under ``name``, cut to 15 bytes.

    Before Python 3.14 the host does not learn the names of Python's threads. A
    thread inherits the visible name of the thread that started it.
    """
    # Not by /proc, because a confined process (pykvm/sandbox) cannot open files.
    # A name may contain a path, whose bytes need not be UTF-8.
    prctl(_PR_SET_NAME, os.fsencode(name)[:15] + b"\0")


def start(thread: threading.Thread, purpose: str) -> None:
    """Start ``thread``; HostError, which names ``purpose``, if the host has no thread left."""
    try:
        thread.start()
    except RuntimeError:
        hint = thread_advice()
        raise HostError(f"the host has no thread for {purpose}", hint) from None


def run_on(cpus: Collection[int]) -> None:
    """Let the calling thread, and threads that it starts, run only on ``cpus`` of the host.

    CPUs that are not among :func:`usable_cpus` are ignored; OSError if none
    remain. If ``cpus`` is empty, nothing changes.
    """
    if cpus:
        os.sched_setaffinity(0, cpus)


def usable_cpus() -> set[int]:
    """The host's CPUs to which this process can set its affinity: those of its cgroup.

    The present affinity may have fewer. The kernel tells the usable CPUs only as
    the result of a request for all CPUs, which a separate thread makes.
    """
    found = os.sched_getaffinity(0)

    def ask() -> None:
        with suppress(OSError):
            run_on(range(MAX_CPUS))
            found.update(os.sched_getaffinity(0))

    thread = threading.Thread(target=ask, daemon=True)
    start(thread, "finding the usable CPUs")
    thread.join()
    return found


def cpu_list(cpus: Collection[int]) -> str:
    """``cpus`` as text, in the kernel's notation: ``0-3,6``."""
    parts = []
    for _, run in groupby(enumerate(sorted(cpus)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        ends = dict.fromkeys((numbers[0], numbers[-1]))
        parts.append("-".join(map(str, ends)))
    return ",".join(parts)
