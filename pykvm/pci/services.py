"""The services that a PCI function needs from the machine around it.

The PCI code knows nothing of KVM. :mod:`pykvm.kvm.pci_services` implements these
protocols with irqfds, GSI routes and ioeventfds. Tests implement them with lists.
"""

from pykvm.lean.typing_names import Protocol


class MsiVector(Protocol):
    """One message-signalled interrupt: an eventfd that injects a message into the guest."""

    @property
    def eventfd(self) -> int:
        """Write 1 to it to raise the interrupt; valid until :meth:`close`."""

    def route(self, address: int, data: int) -> None:
        """Send this message from now on: 64-bit address, 32-bit data."""

    def mask(self) -> None:
        """Deliver nothing until the next :meth:`route`; interrupts stay in the eventfd."""

    def take_pending(self) -> bool:
        """Only while masked: True if an interrupt waits, which is then forgotten (for the PBA)."""

    def close(self) -> None:
        """Release the vector."""


class InterruptLine(Protocol):
    """A level-triggered interrupt line of one function (INTx)."""

    @property
    def gsi(self) -> int:
        """The line's number, for the Interrupt Line register."""

    def set(self, level: bool) -> None:
        """Drive the line. Any thread may call it."""


class PciServices(Protocol):
    """The services of the machine that PCI functions use."""

    def msi_vector(self) -> MsiVector:
        """A new vector, masked until its first :meth:`MsiVector.route`."""

    def interrupt_line(self, device: int, pin: int) -> InterruptLine:
        """The line of INTx ``pin`` (1 = INTA#) of PCI device number ``device`` on bus 0."""

    def bind_doorbell(self, address: int, length: int, eventfd: int) -> None:
        """Signal ``eventfd`` on any guest MMIO write of ``length`` bytes to ``address``.

        ``length`` 0 matches every width. The write then causes no exit to Python.
        """

    def unbind_doorbell(self, address: int, length: int, eventfd: int) -> None:
        """Undo :meth:`bind_doorbell` with the same arguments."""
