"""Turns requests into operations, and decides when each may start: without I/O or threads."""
