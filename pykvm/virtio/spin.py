"""Watches a word of guest memory for a change: what polling is made of.

Only the compiled form (speed/README.md) spins, without the GIL. A loop of
interpreted code would keep the GIL from the vCPU threads for milliseconds, so
that form does not spin at all.
"""

from pykvm.native import Words16

try:
    import cython
except ImportError:
    from pykvm import interpreted as cython

if cython.compiled:
    from cython.cimports.posix import time as clock


def changes(words: Words16, place: int, value: int, nanoseconds: int) -> bool:
    """Is ``words[place]`` another than ``value``, now or within ``nanoseconds``?"""
    if cython.compiled:
        now = cython.declare(clock.timespec)
        with cython.nogil:
            clock.clock_gettime(clock.CLOCK_MONOTONIC, cython.address(now))
            end = now.tv_sec * 1_000_000_000 + now.tv_nsec + nanoseconds
            while words[place] == value:
                clock.clock_gettime(clock.CLOCK_MONOTONIC, cython.address(now))
                if now.tv_sec * 1_000_000_000 + now.tv_nsec >= end:
                    break
    return words[place] != value
