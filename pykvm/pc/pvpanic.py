"""pvpanic on the ISA bus (QEMU docs/specs/pvpanic.rst): a guest reports that its kernel died.

A read returns the events that the device understands. A write reports events. The
PCI variant (pykvm/pci/pvpanic.py) has the same byte in a BAR.
"""

from collections.abc import Callable

PVPANIC_PORT = 0x505
PVPANIC_PORTS = 1

PVPANIC_PANICKED = 0x01
"""The kernel panicked and cannot continue."""
PVPANIC_CRASH_LOADED = 0x02
"""The kernel panicked and continues in its crash kernel, so the run goes on."""
PVPANIC_EVENTS = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED


class Pvpanic:
    """One byte, at offset 0. Bytes behind it read 0, and writes to them are ignored.

    ``report(events)`` is called from the vCPU thread, with one or both of the bits.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def read(self, offset: int, size: int) -> int:
        """The events that the device understands."""
        return PVPANIC_EVENTS if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Report events; unknown bits are ignored."""
        events = value & PVPANIC_EVENTS
        if events and offset == 0:
            self._report(events)
