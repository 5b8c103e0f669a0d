"""Watches words of memory that other threads write, which is the core of polling.

Only the compiled form (speed/README.md) spins, without the GIL. An interpreted loop
would keep the GIL from the vCPU threads for milliseconds, so the interpreted form checks
the words once.
"""

from array import array
from typing import Final

from pykvm.hot import cython_stub as cython
from pykvm.hot.words import U64, Words16, Words64

if cython.compiled:
    from cython.cimports.posix import time as clock


_GAP_NS: Final = 100_000
"""A thread that does not run for this long has lost its CPU. Interrupts, and the kernel's threads
behind them, take a CPU for less."""


class Watch:
    """Words of 16 bits with their known values. Each :meth:`changes` forgets them afterwards.

    Until then, their memory must not move. ``lost_ns``: the time for which other
    threads had the CPU during the last :meth:`changes`, in gaps of 0.1 ms or more; 0 in
    the interpreted form.
    """

    count: int
    lost_ns: int
    _words: list[tuple[Words16, int, int]]
    _addresses: Words64
    _values: Words64

    def __init__(self, most: int) -> None:
        """Make room for ``most`` words."""
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
        """Watch ``words[place]`` for a number other than ``value``, which it may have already."""
        if cython.compiled:
            address: U64 = cython.cast(cython.size_t, cython.address(words[place]))
            self._addresses[self.count] = address
            self._values[self.count] = value
        else:
            self._words.append((words, place, value))
        self.count += 1

    def changes(self, nanoseconds: int) -> bool:
        """True if a word has a number other than its known value, now or within ``nanoseconds``."""
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
