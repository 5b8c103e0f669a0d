"""The host's kernel and C library: system calls, threads, limits, io_uring, timers."""
