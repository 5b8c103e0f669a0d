"""A timer whose end a poll can see, among other descriptors."""

import os
from collections.abc import Callable

_NS_PER_SECOND = 1_000_000_000
_TFD_TIMER_ABSTIME = 1
_CLOCK_MONOTONIC = 1


class Timer:
    """Owns a timerfd: ``fd`` is readable from the moment on that :meth:`set` was given.

    Python has os.timerfd_create from 3.13 on; until then the C library is asked.
    """

    def __init__(self) -> None:
        create, self._settime = _functions()
        # TFD_NONBLOCK and TFD_CLOEXEC are defined as these.
        self.fd = create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self, moment_ns: int) -> None:
        """Let ``fd`` be readable from ``moment_ns`` (time.monotonic_ns) on only; 0: never."""
        seconds, rest = divmod(moment_ns, _NS_PER_SECOND)
        self._settime(self.fd, _TFD_TIMER_ABSTIME, (0, 0, seconds, rest))

    def close(self) -> None:
        """Close ``fd``."""
        os.close(self.fd)


def _functions() -> tuple[Callable[[int, int], int], Callable[[int, int, tuple[int, ...]], None]]:
    """timerfd_create(2), and timerfd_settime(2) with the fields of its new value; OSError."""
    # Few runs need it: not at the top.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def settime(fd: int, flags: int, fields: tuple[int, ...]) -> None:
        # struct itimerspec on x86-64: interval and value, each seconds and nanoseconds.
        check(libc.timerfd_settime(fd, flags, (ctypes.c_long * 4)(*fields), None))

    return lambda clock, flags: check(libc.timerfd_create(clock, flags)), settime
