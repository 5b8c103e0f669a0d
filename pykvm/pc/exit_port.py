"""The exit port: a guest that writes a byte to I/O port 0xf4 powers off with that status."""

from collections.abc import Callable

EXIT_PORT = 0xF4
EXIT_PORTS = 1


class ExitPort:
    """One port. The vCPU thread that writes calls ``power_off(status)``, from 0 to 255."""

    def __init__(self, power_off: Callable[[int], None]) -> None:
        self._power_off = power_off

    def read(self, offset: int, size: int) -> int:
        """All ones, as from a port without a device."""
        return (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """End the run."""
        self._power_off(value & 0xFF)
