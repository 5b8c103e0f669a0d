"""Confines the process of ``pykvm boot``; docs/reference/sandbox.md lists the allowed system calls.

An attacker who escapes the guest through a bug in pykvm can use only what the process already has
open. Only the command line confines itself. A program that uses pykvm as a library decides about
its own process.
"""

from pykvm.sandbox.confinement import Confinement, confine

__all__ = ["Confinement", "confine"]
