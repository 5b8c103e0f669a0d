"""Engines execute operations on an image, by system calls of their own or through io_uring."""
