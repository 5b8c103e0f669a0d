"""The targets of the fuzzer, and their invariants.

A guest may do anything to its memory, its rings and its devices' registers. These
invariants hold nevertheless:

- no exception leaves the device;
- a request that was taken from a ring is given back once, or not at all if the machine is
  stopped or the ring is broken;
- no access goes outside guest RAM or outside the disk;
- each pass over the rings takes bounded work and memory;
- after a reset, the device works for an honest driver.

:class:`pykvm.testing.hostile_rig.Rig` checks them. A parser of untrusted files or messages
returns, or raises a UsageError that names the fault. Its memory is bounded by the input's
length.
"""

from collections.abc import Callable
from functools import partial

from fuzz import parsers, play

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "disk": partial(play.play, play.DISK),
    "pci": partial(play.play, play.PCI),
    "parsers": parsers.parse,
}
"""Each takes any bytes. It raises an exception if it found a fault."""
