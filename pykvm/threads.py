"""What the rest of the system sees of a thread: its name, and the CPUs that it may run on."""

import os
import threading
from collections.abc import Collection
from contextlib import suppress

_PR_SET_NAME = 15


def show_thread_name(name: str) -> None:
    """Let ``ps -L`` and ``top -H`` show the calling thread under ``name``, cut to 15 bytes.

    Python keeps the names of its threads to itself until 3.14, and a thread
    begins with the visible name of the one that started it.
    """
    # Not by /proc: a process that has confined itself (pykvm/cli/sandbox) opens nothing any more.
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def run_on(cpus: Collection[int]) -> None:
    """Let the calling thread, and those that it starts, run on these of the host's CPUs only.

    Those of ``cpus`` that :func:`missing_cpus` tells of do not count; OSError if
    that leaves none. Nothing changes if ``cpus`` is empty.
    """
    if cpus:
        os.sched_setaffinity(0, cpus)


def missing_cpus(cpus: Collection[int]) -> set[int]:
    """Those of ``cpus`` that this process cannot use: they do not exist, or its cgroup forbids it.

    The kernel alone knows, and tells by what it makes of an attempt; a thread
    of its own makes that.
    """
    missing = set(cpus)

    def attempt() -> None:
        with suppress(OSError, OverflowError):
            run_on(cpus)
            missing.difference_update(os.sched_getaffinity(0))

    if cpus:
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join()
    return missing
