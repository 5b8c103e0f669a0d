"""The machine's services for PCI, made of eventfds and lists, for tests of the transport."""

import os

from pykvm.bus import Bus
from pykvm.x86.mptable import pci_gsi


class FakeVector:
    """An MSI vector that keeps its message. ``message`` is None while masked."""

    def __init__(self) -> None:
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.message: tuple[int, int] | None = None
        self.routes = 0

    def route(self, address: int, data: int) -> None:
        """See :class:`pykvm.pci.services.MsiVector`."""
        self.message = (address, data)
        self.routes += 1

    def mask(self) -> None:
        """See :class:`pykvm.pci.services.MsiVector`."""
        self.message = None

    def _drain(self) -> int:
        try:
            return os.eventfd_read(self.eventfd)
        except BlockingIOError:
            return 0

    def take_pending(self) -> bool:
        """See :class:`pykvm.pci.services.MsiVector`."""
        return self._drain() > 0

    def delivered(self) -> tuple[int, int] | None:
        """The message that the guest received since the last call; None if none, or masked."""
        return self.message if self.message is not None and self._drain() else None

    def close(self) -> None:
        """See :class:`pykvm.pci.services.MsiVector`."""
        os.close(self.eventfd)


class FakeLine:
    """An interrupt line. ``level`` is its present level, ``edges`` the number of its rises."""

    def __init__(self, gsi: int) -> None:
        self.gsi = gsi
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        """Drive the line."""
        self.edges += level and not self.level
        self.level = level


class FakePciServices:
    """Implements :class:`pykvm.pci.services.PciServices`.

    ``doorbells`` maps (address, length) to the eventfd bound there.
    :meth:`store` is a guest's MMIO write: it goes to the doorbell at its address,
    else to ``mmio``, as in KVM. ``exits`` counts accesses to ``mmio``.
    """

    def __init__(self) -> None:
        self.mmio = Bus()
        self.vectors: list[FakeVector] = []
        self.lines: dict[int, FakeLine] = {}
        self.doorbells: dict[tuple[int, int], int] = {}
        self.exits = 0

    def msi_vector(self) -> FakeVector:
        """A new vector, kept in ``vectors``."""
        self.vectors.append(FakeVector())
        return self.vectors[-1]

    def interrupt_line(self, device: int, pin: int) -> FakeLine:
        """The line of INTx ``pin``, as the MP table gives it."""
        gsi = pci_gsi(device, pin)
        return self.lines.setdefault(gsi, FakeLine(gsi))

    def bind_doorbell(self, address: int, length: int, eventfd: int) -> None:
        """AssertionError if a doorbell is bound there already; KVM returns EEXIST then."""
        assert (address, length) not in self.doorbells, f"doorbell {address:#x} is taken"
        self.doorbells[address, length] = eventfd

    def unbind_doorbell(self, address: int, length: int, eventfd: int) -> None:
        """AssertionError unless exactly this doorbell was bound."""
        assert self.doorbells.pop((address, length)) == eventfd

    def store(self, address: int, size: int, value: int) -> None:
        """A guest's MMIO write."""
        eventfd = self.doorbells.get((address, 0))
        if eventfd is not None:
            os.eventfd_write(eventfd, 1)
        else:
            self.exits += 1
            self.mmio.write(address, size, value)

    def load(self, address: int, size: int) -> int:
        """A guest's MMIO read."""
        self.exits += 1
        return self.mmio.read(address, size)
