"""Measures disks: a room for each command of ``pykvm bench``, and their parts in common."""
