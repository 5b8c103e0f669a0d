"""A full memory fence without an extension module.

A device that publishes used.idx and then reads used_event, and a driver that
writes used_event and then reads used.idx, rely on at least one of them seeing
the other's store (virtio 1.2 §2.7.7, §2.7.10). An x86 processor may let the
load pass the earlier store, which is still in the store buffer; then both
read the old value, the interrupt is never sent and the driver waits for ever.

Python gives no ordering of its own here. A store through a memoryview is an
ordinary MOV, and the thousand instructions that the interpreter runs before
the next load make the reordering rare, not impossible: nothing among them
has to drain the store buffer. The GIL only orders threads of this process,
and a guest's vCPU runs without it.

An instruction with a LOCK prefix does order them: later loads are not
performed before it, and it waits until all earlier stores are visible (Intel
SDM vol. 3, "Memory Ordering", locked instructions). pthread_spin_trylock()
on x86-64 is exactly one such read-modify-write on the word that it is given
(LOCK CMPXCHG in glibc and musl, an XCHG with the same effect in older ones),
whether or not the lock is free. So calling it on a private word, which is
never unlocked, is a fence; the answer does not matter.

ctypes rather than cffi: the same call costs 0.09 µs instead of 0.12 µs and
loads in under 2 ms, while cffi's ABI mode needs a cdef parsed at run time (36
ms). PyDLL rather than CDLL: the GIL stays held, so a vCPU thread cannot take
it in the middle of a publish.
"""

from collections.abc import Callable

from pykvm.virtio.queue import COMPILED, no_fence


def full_fence() -> Callable[[], None]:
    """A callable that orders all earlier stores before all later loads of its thread.

    Each call of this function makes a fence with a word of its own, so that
    fences of different threads never share a cache line's ownership. Loads the
    C library on first use, hence no import at the top.
    """
    import ctypes
    from functools import partial

    trylock = ctypes.PyDLL(None).pthread_spin_trylock
    # 64 bytes: a cache line, so that no neighbour of the word is written by others.
    word = (ctypes.c_int * 16)()
    return partial(trylock, ctypes.byref(word))


def queue_fence() -> Callable[[], None]:
    """The fence to give a virtqueue: a compiled one has the processor's own instruction already."""
    return no_fence if COMPILED else full_fence()
