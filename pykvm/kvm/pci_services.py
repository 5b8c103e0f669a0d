"""KVM's services for PCI functions: MSI vectors, INTx lines and doorbells.

Implements the protocols of ``pykvm/pci/services.py`` by shape, without importing
them. In steady state nothing here causes an exit to Python: an MSI is an eventfd
write that KVM turns into an interrupt (irqfd), and a doorbell is a guest write that
KVM turns into an eventfd write (ioeventfd).
"""

import os
from collections.abc import Callable
from threading import Lock

from pykvm.kvm.constants import (
    KVM_CAP_IOEVENTFD,
    KVM_CAP_IOEVENTFD_ANY_LENGTH,
    KVM_CAP_IRQ_ROUTING,
    KVM_CAP_IRQCHIP,
    KVM_CAP_IRQFD,
)
from pykvm.kvm.descriptor import Descriptor
from pykvm.kvm.routing import GsiRouter
from pykvm.kvm.vm import Vm

FIRST_INTX_GSI = 16
INTX_GSIS = 8


class KvmMsiVector(Descriptor):
    """One MSI: owns its eventfd and its GSI. See pci.services.MsiVector.

    While masked, the eventfd is not connected to KVM, so signals add up in it.
    Connecting it raises one interrupt for all of them.
    """

    def __init__(self, vm: Vm, router: GsiRouter) -> None:
        super().__init__(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._vm = vm
        self._router = router
        self._lock = Lock()
        self._masked = True
        try:
            self.gsi = router.allocate()
        except BaseException:
            super().close()
            raise

    @property
    def eventfd(self) -> int:
        """Write 1 to it to raise the interrupt; valid until :meth:`close`."""
        return self.fd

    def route(self, address: int, data: int) -> None:
        """Send ``data`` to ``address`` from now on, and once now if a signal is pending."""
        with self._lock:
            self._router.route(self.gsi, address, data)
            if not self._masked:
                return
            # When an eventfd is connected, KVM raises its signals but leaves them in it, where
            # they would look like new signals later. So they are taken out first.
            pending = self._drain()
            try:
                self._vm.irqfd(self.fd, self.gsi)
                self._masked = False
            finally:
                if pending:
                    os.eventfd_write(self.fd, 1)

    def mask(self) -> None:
        """Deliver nothing until the next :meth:`route`; signals stay in the eventfd.

        A signal that arrives during the call is either delivered before it returns
        or kept, because KVM disconnects the eventfd under its lock.
        """
        with self._lock:
            self._mask()

    def take_pending(self) -> bool:
        """Only while masked: True if a signal waits, which is then forgotten."""
        with self._lock:
            return self._masked and self._drain()

    def close(self) -> None:
        """Disconnect and close the eventfd, and free the GSI."""
        with self._lock:
            if self.closed:
                return
            try:
                self._mask()
                self._router.free(self.gsi)
            finally:
                super().close()

    def _mask(self) -> None:
        if not self._masked:
            self._vm.irqfd(self.fd, self.gsi, assign=False)
            self._masked = True

    def _drain(self) -> bool:
        try:
            return os.eventfd_read(self.fd) > 0
        except BlockingIOError:
            return False


class _SharedLine:
    """A GSI that several functions drive. It is asserted while one of them asserts it."""

    def __init__(self, gsi: int, drive: Callable[[int, bool], None]) -> None:
        self.gsi = gsi
        self._drive = drive
        self._lock = Lock()
        self._asserted = 0

    def add(self, change: int) -> None:
        with self._lock:
            before, self._asserted = self._asserted, self._asserted + change
            if (before == 0) != (self._asserted == 0):
                self._drive(self.gsi, self._asserted > 0)


class KvmInterruptLine:
    """One function's level-triggered interrupt line. See pci.services.InterruptLine."""

    def __init__(self, line: _SharedLine) -> None:
        self._line = line
        self._lock = Lock()
        self._level = False

    @property
    def gsi(self) -> int:
        """The line's number, for the Interrupt Line register."""
        return self._line.gsi

    def set(self, level: bool) -> None:
        """Drive the line; functions that share it are wired-OR. Any thread may call it."""
        with self._lock:
            if level != self._level:
                self._level = level
                self._line.add(1 if level else -1)


class KvmPciServices:
    """The services of one VM for PCI functions. See pci.services.PciServices.

    The VM needs its irqchip first. MissingCapability if KVM cannot provide the
    services without exits. Owns the VM's routing table (``router``).
    """

    def __init__(self, vm: Vm) -> None:
        vm.require(
            KVM_CAP_IRQCHIP,
            KVM_CAP_IRQ_ROUTING,
            KVM_CAP_IRQFD,
            KVM_CAP_IOEVENTFD,
            KVM_CAP_IOEVENTFD_ANY_LENGTH,
        )
        self._vm = vm
        self.router = GsiRouter(vm, vm.check_extension(KVM_CAP_IRQ_ROUTING))
        self._lines = [
            _SharedLine(gsi, vm.irq_line)
            for gsi in range(FIRST_INTX_GSI, FIRST_INTX_GSI + INTX_GSIS)
        ]

    def msi_vector(self) -> KvmMsiVector:
        """A new vector, masked until its first ``route``. The caller closes it."""
        return KvmMsiVector(self._vm, self.router)

    def interrupt_line(self, device: int, pin: int) -> KvmInterruptLine:
        """The line of INTx ``pin`` (1 = INTA#) of device number ``device`` on bus 0.

        Its GSI is 16 + ((device + pin - 1) mod 8), as the MP table tells the guest.
        """
        return KvmInterruptLine(self._lines[(device + pin - 1) % INTX_GSIS])

    def bind_doorbell(self, address: int, length: int, eventfd: int) -> None:
        """Signal ``eventfd`` on any guest write of ``length`` bytes (0: any) to ``address``."""
        self._vm.ioeventfd(eventfd, address, length)

    def unbind_doorbell(self, address: int, length: int, eventfd: int) -> None:
        """Undo :meth:`bind_doorbell` with the same arguments."""
        self._vm.ioeventfd(eventfd, address, length, assign=False)
