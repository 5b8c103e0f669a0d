"""What is fuzzed, and what must hold.

The invariant, whatever a guest does to its memory, its rings and its devices'
registers:

- no exception leaves the device;
- what was taken from a ring is given back at most once, and is given back
  unless the machine is stopped or the ring is beyond use;
- no access outside guest RAM, and none outside the disk;
- bounded work and memory for each look at the rings;
- after a reset, an honest driver finds a device that works.

:class:`pykvm.testing.hostile_rig.Rig` checks it. For parsers of other people's files
and messages: they return, or say what is wrong as a UsageError, within memory
that the input's length bounds.
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
"""Each takes any bytes, and raises AssertionError, or what it must not, if it found something."""
