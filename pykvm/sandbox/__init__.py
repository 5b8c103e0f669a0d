"""Confinement of the process of ``pykvm boot``; docs/reference/sandbox.md tells what it forbids.

Whoever breaks out of a guest through a bug of ours finds a process that can use
what is open and nothing else. Only the command line confines itself: a program
that uses pykvm as a library has a process of its own to look after.
"""

from pykvm.sandbox.confinement import Confinement, confine

__all__ = ["Confinement", "confine"]
