"""A full memory fence without an extension module.

A device that publishes used.idx and then reads used_event, and a driver that
writes used_event and then reads used.idx, rely on at least one of them seeing
the other's store (virtio 1.2 §2.7.7, §2.7.10). An x86 processor may execute the
load while the earlier store is still in the store buffer. Then both sides
read the old value, the interrupt is never sent, and the driver waits for ever.

Python does not order the two. A store through a memoryview is an ordinary MOV.
The interpreter runs a thousand instructions before the next load, which makes
the reordering rare but not impossible, because none of them has to drain the
store buffer. The GIL orders only threads of this process, and a guest's vCPU
runs without it.

An instruction with a LOCK prefix orders the two: it waits until all earlier
stores are visible, and later loads wait for it (Intel SDM vol. 3, "Memory
Ordering", locked instructions). On x86-64, pthread_spin_trylock() is exactly
one such read-modify-write of its word (LOCK CMPXCHG in glibc and musl, XCHG
with the same effect in older versions), even if the lock is taken. So a call
on a private word, which is never unlocked, is a fence. Its result does not
matter.

ctypes calls it in 0.09 µs and loads in under 2 ms. cffi takes 0.12 µs, and 36 ms
to parse a cdef at run time. PyDLL keeps the GIL, unlike CDLL, so no vCPU thread
can take it in the middle of a publish.
"""

from collections.abc import Callable

from pykvm.virtio.queue import COMPILED, no_fence


def full_fence() -> Callable[[], None]:
    """A callable that orders all earlier stores before all later loads of its thread.

    Each call of this function makes a fence with a word of its own, so that the
    fences of different threads never compete for a cache line. The first call imports
    ctypes, because the compiled form never needs it.
    """
    import ctypes
    from functools import partial

    trylock = ctypes.PyDLL(None).pthread_spin_trylock
    # A whole cache line of 64 bytes, so that no other thread writes to it.
    word = (ctypes.c_int * 16)()
    return partial(trylock, ctypes.byref(word))


def queue_fence() -> Callable[[], None]:
    """The fence for a virtqueue; a compiled queue uses the processor's instruction instead."""
    return no_fence if COMPILED else full_fence()
