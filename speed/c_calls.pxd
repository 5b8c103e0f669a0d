# C functions that compiled hot modules call and for which Cython has no declarations.

cdef extern from "<unistd.h>" nogil:
    # Six words, as the kernel takes them. The C library's declaration does not give their types.
    long syscall(long number, long a, long b, long c, long d, long e, long f)

cdef extern from * nogil:
    """
    #include <sys/epoll.h>
    static inline int pykvm_epoll_wait(int fd, unsigned long long events, int most, int timeout)
    { return epoll_wait(fd, (struct epoll_event *) events, most, timeout); }
    /* Orders all earlier stores before all later loads, for the processor and the compiler. */
    static inline void pykvm_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    void full_fence "pykvm_full_fence" ()
    # events: the address of an array of the packed structure.
    int epoll_wait "pykvm_epoll_wait" (int fd, unsigned long long events, int most, int timeout)
