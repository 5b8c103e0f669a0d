"""Thread names that the rest of the system can see."""

from contextlib import suppress


def show_thread_name(name: str) -> None:
    """Let ``ps -L`` and ``top -H`` show the calling thread under ``name``, cut to 15 bytes.

    Python keeps the names of its threads to itself until 3.14, and a thread
    begins with the visible name of the one that started it.
    """
    with suppress(OSError), open("/proc/thread-self/comm", "wb", buffering=0) as comm:
        comm.write(name.encode()[:15])
