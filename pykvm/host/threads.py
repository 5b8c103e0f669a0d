"""What the rest of the system sees of a thread: its name, and the CPUs that it may run on."""

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
"""More than this Linux does not have (CONFIG_NR_CPUS)."""

_PR_SET_NAME = 15


def show_thread_name(name: str) -> None:
    """Let ``ps -L`` and ``top -H`` show the calling thread under ``name``, cut to 15 bytes.

    Python keeps the names of its threads to itself until 3.14, and a thread
    begins with the visible name of the one that started it.
    """
    # Not by /proc: a process that has confined itself (pykvm/sandbox) opens nothing any more.
    # A name may have a path in it, whose bytes need not be UTF-8.
    prctl(_PR_SET_NAME, os.fsencode(name)[:15] + b"\0")


def start(thread: threading.Thread, purpose: str) -> None:
    """Start ``thread``; HostError, with what it was to be for, if the host has none."""
    try:
        thread.start()
    except RuntimeError:
        hint = thread_advice()
        raise HostError(f"the host has no thread for {purpose}", hint) from None


def run_on(cpus: Collection[int]) -> None:
    """Let the calling thread, and those that it starts, run on these of the host's CPUs only.

    Those that are not among :func:`usable_cpus` do not count; OSError if that
    leaves none. Nothing changes if ``cpus`` is empty.
    """
    if cpus:
        os.sched_setaffinity(0, cpus)


def usable_cpus() -> set[int]:
    """The host's CPUs that this process may run on if it wants to: those of its cgroup.

    The present affinity may be narrower, and taskset could widen it. Only the
    kernel knows, and tells by what it leaves of a wish for all.
    """
    found = os.sched_getaffinity(0)

    def ask() -> None:
        with suppress(OSError):
            run_on(range(MAX_CPUS))
            found.update(os.sched_getaffinity(0))

    thread = threading.Thread(target=ask, daemon=True)
    start(thread, "looking at the host's CPUs")
    thread.join()
    return found


def cpu_list(cpus: Collection[int]) -> str:
    """``cpus`` for people, as the kernel writes them: ``0-3,6``."""
    parts = []
    for _, run in groupby(enumerate(sorted(cpus)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        ends = dict.fromkeys((numbers[0], numbers[-1]))
        parts.append("-".join(map(str, ends)))
    return ",".join(parts)
