"""The bell: a guest that writes to its page tells the host to look into the mailbox.

A program maps the page and rings without a system call. Where KVM emulates the
guest's kernel code, that costs a fiftieth of a byte on a UART.
"""

from collections.abc import Callable

BELL_PLACE = 0xFED0_0000
"""Guest-physical, where PCs with ACPI have a timer (HPET), among the addresses of the platform."""
BELL_SIZE = 0x1000


class Bell:
    """One page of MMIO. The vCPU's thread that writes calls ``ring()``."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def read(self, offset: int, size: int) -> int:
        """Zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Ring, whatever is written."""
        self._ring()
