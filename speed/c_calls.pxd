# C functions that hot modules call when they are compiled, for which Cython has no declarations.

cdef extern from "<unistd.h>" nogil:
    # Six words, as the kernel takes them; the C library's declaration leaves their types open.
    long syscall(long number, long a, long b, long c, long d, long e, long f)

cdef extern from * nogil:
    """
    /* Orders all earlier stores before all later loads, for the processor and the compiler. */
    static inline void pykvm_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    void full_fence "pykvm_full_fence" ()
