"""Engines execute operations on an image: by system calls, in threads, or through io_uring."""
