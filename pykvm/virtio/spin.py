"""Watches a word of guest memory for a change: what polling is made of.

Only the compiled form (speed/README.md) spins, without the GIL. A loop of
interpreted code would keep the GIL from the vCPU threads for milliseconds, so
that form does not spin at all.
"""

from pykvm import interpreted as cython
from pykvm.native import Words16

if cython.compiled:
    from cython.cimports.posix import time as clock


class Signs:
    """Two words of memory shared with somebody else, and what they were: ``first``, ``second``.

    For who waits for a change of either beside the word of guest memory.
    """

    words: Words16
    first_at: int
    second_at: int
    first: int
    second: int

    def __init__(self, words: Words16, first_at: int, second_at: int) -> None:
        """``words``: at least one, looked at in ``first_at`` and ``second_at``."""
        self.words = words
        self.first_at = first_at
        self.second_at = second_at
        self.first = words[first_at]
        self.second = words[second_at]


NO_SIGNS = Signs(memoryview(bytearray(2)).cast("H"), 0, 0)
"""They never change."""


def changes(
    words: Words16, place: int, value: int, nanoseconds: int, signs: Signs = NO_SIGNS
) -> bool:
    """Is ``words[place]`` another than ``value``, now or within ``nanoseconds``?

    Returns early, perhaps with False, when one of ``signs`` changes.
    """
    if cython.compiled:
        now = cython.declare(clock.timespec)
        others, first_at, second_at = signs.words, signs.first_at, signs.second_at
        first, second = signs.first, signs.second
        with cython.nogil:
            clock.clock_gettime(clock.CLOCK_MONOTONIC, cython.address(now))
            end = now.tv_sec * 1_000_000_000 + now.tv_nsec + nanoseconds
            while (
                words[place] == value and others[first_at] == first and others[second_at] == second
            ):
                clock.clock_gettime(clock.CLOCK_MONOTONIC, cython.address(now))
                if now.tv_sec * 1_000_000_000 + now.tv_nsec >= end:
                    break
    return words[place] != value
