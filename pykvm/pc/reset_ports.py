"""Ports by which a PC resets itself.

- 0x92, system control port A: bit 0 resets, bit 1 is the A20 gate.
- 0xcf9, reset control: a change of bit 2 from 0 to 1 resets. The port lies within PCI
  configuration mechanism 1 (0xcf8 to 0xcff), whose owner has to pass byte
  accesses to 0xcf9 on to :class:`ResetControl`.

KVM's PIT answers port 0x61, system control port B.
"""

from collections.abc import Callable

from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

PORT_A = 0x92

FAST_RESET, A20 = 0x01, 0x02
RST_CPU = 0x04
_WRITABLE = 0x0E


class PortA:
    """Port 0x92. ``reset()`` is called when the guest sets bit 0. A20 cannot be closed."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def read(self, offset: int, size: int) -> int:
        """A20 is open."""
        return A20

    def write(self, offset: int, size: int, value: int) -> None:
        """Reset if bit 0 is set."""
        if value & FAST_RESET:
            self._reset()


class ResetControl:
    """Port 0xcf9. ``reset()`` is called when RST_CPU goes from 0 to 1."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """The bits that were written last."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Reset when RST_CPU rises. Hard reset (bit 1) and power cycle (bit 3) count as resets."""
        rising = value & ~self._value & RST_CPU
        self._value = value & _WRITABLE
        if rising:
            self._reset()

    def save(self) -> "Fields":
        """The register."""
        return {"value": self._value}

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave. SnapshotError."""
        self._value = saved.integer("value", 0, _WRITABLE)
        if self._value & ~_WRITABLE:
            saved.refuse("value has bits set that cannot be written")
        saved.end()
