# C functions that hot modules call when they are compiled, for which Cython has no declarations.

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from * nogil:
    """
    /* Orders all earlier stores before all later loads, for the processor and the compiler. */
    static inline void pykvm_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    void full_fence "pykvm_full_fence" ()
