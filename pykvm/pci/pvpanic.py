"""The PCI form of pvpanic: how a guest kernel says that it panicked.

Device 1b36:0011, one memory BAR; byte 0 reads as the events that are
supported, and a written byte has the bits of the events that happened (QEMU,
docs/specs/pvpanic). Linux's pvpanic-pci driver binds to it.
"""

from collections.abc import Callable

from pykvm.pci.config import MIN_BAR_SIZE, PciFunction

PVPANIC_PANICKED = 1
PVPANIC_CRASHLOADED = 2
_EVENTS = PVPANIC_PANICKED | PVPANIC_CRASHLOADED


class PvPanicPci(PciFunction):
    """``report`` gets the event bits, on the vCPU's thread."""

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__(
            vendor=0x1B36,
            device=0x0011,
            class_code=0x088000,
            revision=1,
            subsystem=(0x1AF4, 0x1100),
        )
        self._report = report
        self.add_bar(0, MIN_BAR_SIZE, self)

    def read(self, offset: int, size: int) -> int:
        """The supported events at offset 0, else 0."""
        return _EVENTS if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Report the events written to offset 0; unknown bits are dropped."""
        if offset == 0 and value & _EVENTS:
            self._report(value & _EVENTS)
