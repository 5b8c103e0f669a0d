"""pvpanic on PCI: a guest kernel reports that it panicked.

Device 1b36:0011 has one memory BAR, whose first byte works as the I/O port of the
ISA variant (QEMU, docs/specs/pvpanic). Linux's pvpanic-pci driver binds to it.
"""

from pykvm.bus import BusDevice
from pykvm.pci.config import MIN_BAR_SIZE, PciFunction


class PvPanicPci(PciFunction):
    """Has ``port``, the device of the I/O port, in its BAR at offset 0."""

    def __init__(self, port: BusDevice) -> None:
        super().__init__(
            vendor=0x1B36,
            device=0x0011,
            class_code=0x088000,
            revision=1,
            subsystem=(0x1AF4, 0x1100),
        )
        self.add_bar(0, MIN_BAR_SIZE, port)
