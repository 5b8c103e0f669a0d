"""Which interrupt each GSI means: the VM's routing table and its owner."""

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from pykvm.kvm.constants import (
    KVM_IOAPIC_NUM_PINS,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
)
from pykvm.kvm.errors import KvmError

if TYPE_CHECKING:
    from pykvm.kvm.vm import Vm

FIRST_MSI_GSI = KVM_IOAPIC_NUM_PINS


@dataclass(frozen=True, slots=True)
class IrqchipRoute:
    """GSI ``gsi`` drives input ``pin`` of interrupt controller ``irqchip`` (KVM_IRQCHIP_*)."""

    gsi: int
    irqchip: int
    pin: int


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """GSI ``gsi`` sends the message ``data`` (32 bits) to ``address`` (64 bits)."""

    gsi: int
    address: int
    data: int


Route = IrqchipRoute | MsiRoute


def default_irqchip_routes() -> list[IrqchipRoute]:
    """GSIs 0-23 as KVM sets them up: I/O APIC pin n for GSI n, and the PICs for GSIs 0-15."""
    routes = []
    for gsi in range(KVM_IOAPIC_NUM_PINS):
        if gsi < 16:
            chip = KVM_IRQCHIP_PIC_MASTER if gsi < 8 else KVM_IRQCHIP_PIC_SLAVE
            routes.append(IrqchipRoute(gsi, chip, gsi % 8))
        routes.append(IrqchipRoute(gsi, KVM_IRQCHIP_IOAPIC, gsi))
    return routes


class GsiRouter:
    """Owns a VM's routing table and hands out the GSIs for MSIs (24 and up).

    From any thread. A change loads the whole table, which KVM swaps in at
    once: interrupts on other GSIs are neither lost nor delayed by it.
    """

    def __init__(self, vm: "Vm", limit: int) -> None:
        """``limit``: how many routes KVM takes (KVM_CAP_IRQ_ROUTING)."""
        self._vm = vm
        self._limit = limit
        self._lock = Lock()
        self._fixed = default_irqchip_routes()
        self._messages: dict[int, MsiRoute] = {}
        self._used: set[int] = set()

    def allocate(self) -> int:
        """A GSI that nothing is routed to yet; KvmError if all are taken."""
        with self._lock:
            for gsi in range(FIRST_MSI_GSI, FIRST_MSI_GSI + self._limit - len(self._fixed)):
                if gsi not in self._used:
                    self._used.add(gsi)
                    return gsi
        raise KvmError("KVM_SET_GSI_ROUTING", 0, f"all {self._limit} interrupt routes are taken")

    def route(self, gsi: int, address: int, data: int) -> None:
        """Send the message ``data`` to ``address`` whenever ``gsi`` is raised."""
        self._swap([gsi], [MsiRoute(gsi, address, data)])

    def free(self, gsi: int) -> None:
        """Give back a GSI from :meth:`allocate`."""
        self._swap([gsi], [])
        with self._lock:
            self._used.discard(gsi)

    def _swap(self, old: Iterable[int], new: Iterable[MsiRoute]) -> None:
        raise NotImplementedError
