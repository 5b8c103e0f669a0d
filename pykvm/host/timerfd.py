"""A timer whose end makes a descriptor readable."""

import os
from struct import Struct
from typing import Final

from pykvm.host.libc import system_call

_NR_TIMERFD_CREATE: Final = 283
_NR_TIMERFD_SETTIME: Final = 286
_ITIMERSPEC: Final = Struct("<4q")  # interval and value, each seconds and nanoseconds
_NS_PER_SECOND = 1_000_000_000
_TFD_TIMER_ABSTIME = 1
_CLOCK_MONOTONIC = 1


class Timer:
    """Owns a timerfd: ``fd`` becomes readable at the moment that :meth:`set` got.

    os.timerfd_create would need Python 3.13, so this makes the system calls.
    """

    def __init__(self) -> None:
        # TFD_NONBLOCK and TFD_CLOEXEC are defined as these.
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.fd = system_call(_NR_TIMERFD_CREATE, _CLOCK_MONOTONIC, flags)

    def set(self, moment_ns: int) -> None:
        """Make ``fd`` readable from ``moment_ns`` (of time.monotonic_ns) on; 0: never."""
        seconds, rest = divmod(moment_ns, _NS_PER_SECOND)
        value = _ITIMERSPEC.pack(0, 0, seconds, rest)
        system_call(_NR_TIMERFD_SETTIME, self.fd, _TFD_TIMER_ABSTIME, value)

    def close(self) -> None:
        """Close ``fd``."""
        os.close(self.fd)
