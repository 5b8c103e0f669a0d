"""pvpanic on the ISA bus (QEMU docs/specs/pvpanic.rst): a guest reports that its kernel died.

A read says which events the device understands, a write reports some. The
same byte works for the PCI variant, which only needs another place.
"""

from collections.abc import Callable

PVPANIC_PORT = 0x505
PVPANIC_PORTS = 1

PVPANIC_PANICKED = 0x01
"""The kernel panicked and will do nothing about it."""
PVPANIC_CRASH_LOADED = 0x02
"""The kernel panicked and goes on in its crash kernel: no reason to end the run."""
PVPANIC_EVENTS = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED


class Pvpanic:
    """One byte, at offset 0; what lies behind it reads 0 and takes nothing.

    ``report(events)`` is called from the vCPU thread, with one or both of the bits.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def read(self, offset: int, size: int) -> int:
        """The events understood."""
        return PVPANIC_EVENTS if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Report events; bits that mean nothing are ignored."""
        events = value & PVPANIC_EVENTS
        if events and offset == 0:
            self._report(events)
