"""Watches words of memory that others write: what polling is made of.

Only the compiled form (speed/README.md) spins, without the GIL. A loop of
interpreted code would keep the GIL from the vCPU threads for milliseconds, so
that form does not spin at all.
"""

from array import array
from typing import Final

from pykvm.hot import cython_stub as cython
from pykvm.hot.words import U64, Words16, Words64

if cython.compiled:
    from cython.cimports.posix import time as clock


_GAP_NS: Final = 100_000
"""A thread that does not run for this long has lost its CPU. Interrupts, and the kernel's threads
that go with them, take it for less."""


class Watch:
    """Words of 16 bits and what they were; given anew for each :meth:`changes`, which forgets them.

    Until then their memory stays where it is. ``lost_ns``: how long others had
    the CPU during the last :meth:`changes`, in gaps of 0.1 ms or more; 0 where that does not spin.
    """

    count: int
    lost_ns: int
    _words: list[tuple[Words16, int, int]]
    _addresses: Words64
    _values: Words64

    def __init__(self, most: int) -> None:
        """For up to ``most`` words."""
        self.count = 0
        self.lost_ns = 0
        self._words = []
        self._addresses = memoryview(array("Q", bytes(8 * most)))
        self._values = memoryview(array("Q", bytes(8 * most)))

    def clear(self) -> None:
        """Forget all words."""
        self.count = 0
        self._words.clear()

    def add(self, words: Words16, place: int, value: int) -> None:
        """Watch ``words[place]`` for another number than ``value``, which it may have already."""
        if cython.compiled:
            address: U64 = cython.cast(cython.size_t, cython.address(words[place]))
            self._addresses[self.count] = address
            self._values[self.count] = value
        else:
            self._words.append((words, place, value))
        self.count += 1

    def changes(self, nanoseconds: int) -> bool:
        """Has any of the words another number, now or within ``nanoseconds``?"""
        changed = False
        if cython.compiled:
            now = cython.declare(clock.timespec)
            count, addresses, values = self.count, self._addresses, self._values
            lost: int = 0
            with cython.nogil:
                clock.clock_gettime(clock.CLOCK_MONOTONIC, cython.address(now))
                last = now.tv_sec * 1_000_000_000 + now.tv_nsec
                end = last + nanoseconds
                while True:
                    for index in range(count):
                        if cython.cast(cython.p_ushort, addresses[index])[0] != values[index]:
                            changed = True
                    clock.clock_gettime(clock.CLOCK_MONOTONIC, cython.address(now))
                    moment = now.tv_sec * 1_000_000_000 + now.tv_nsec
                    if moment - last >= _GAP_NS:
                        lost += moment - last
                    if changed or moment >= end:
                        break
                    last = moment
            self.lost_ns = lost
        else:
            for words, place, value in self._words:
                changed |= words[place] != value
        self.clear()
        return changed
