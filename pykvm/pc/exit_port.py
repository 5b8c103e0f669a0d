"""The exit port: a guest that writes a byte to I/O port 0xf4 powers off with that status."""

from collections.abc import Callable

EXIT_PORT = 0xF4
EXIT_PORTS = 1


class ExitPort:
    """One port. ``power_off(status)`` is called from the vCPU thread that wrote, 0 to 255."""

    def __init__(self, power_off: Callable[[int], None]) -> None:
        self._power_off = power_off

    def read(self, offset: int, size: int) -> int:
        """All ones, as a port that nobody owns."""
        return (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The run is over."""
        self._power_off(value & 0xFF)
