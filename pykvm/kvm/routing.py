"""The routing table of a VM, which gives each GSI its interrupt, and its owner."""

from collections.abc import Sequence
from threading import Lock

from pykvm.kvm.constants import (
    KVM_IOAPIC_NUM_PINS,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
)
from pykvm.kvm.errors import KvmError
from pykvm.lean.records import record
from pykvm.lean.typing_names import Protocol

FIRST_MSI_GSI = KVM_IOAPIC_NUM_PINS


@record
class IrqchipRoute:
    """GSI ``gsi`` drives input ``pin`` of interrupt controller ``irqchip`` (KVM_IRQCHIP_*)."""

    gsi: int
    irqchip: int
    pin: int


@record
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


class RouteTable(Protocol):
    """The receiver of the routes: a Vm."""

    def set_gsi_routing(self, routes: Sequence[Route]) -> None:
        """Replace the whole table."""


class GsiRouter:
    """Owns a VM's routing table and hands out the GSIs for MSIs (24 and up).

    Any thread may call it. A change loads the whole table, which KVM replaces
    atomically: interrupts on other GSIs are neither lost nor sent twice.
    """

    def __init__(self, table: RouteTable, limit: int) -> None:
        """``limit``: the number of routes that KVM takes (KVM_CAP_IRQ_ROUTING)."""
        self._table = table
        self._limit = limit
        self._lock = Lock()
        self._fixed = default_irqchip_routes()
        self._messages: dict[int, MsiRoute] = {}
        self._used: set[int] = set()

    def allocate(self) -> int:
        """A free GSI, without a route yet; KvmError if all are taken."""
        with self._lock:
            for gsi in range(FIRST_MSI_GSI, FIRST_MSI_GSI + self._limit - len(self._fixed)):
                if gsi not in self._used:
                    self._used.add(gsi)
                    return gsi
        raise KvmError(
            "KVM_SET_GSI_ROUTING",
            0,
            f"all {self._limit} interrupt routes of this VM are taken",
            "give the guest fewer devices or queues",
        )

    def route(self, gsi: int, address: int, data: int) -> None:
        """Send the message ``data`` to ``address`` whenever ``gsi`` is raised."""
        route = MsiRoute(gsi, address, data)
        with self._lock:
            assert gsi in self._used, f"GSI {gsi} is not allocated"
            if self._messages.get(gsi) != route:
                self._load({**self._messages, gsi: route})

    def free(self, gsi: int) -> None:
        """Free a GSI from :meth:`allocate`, and remove its route."""
        with self._lock:
            if gsi in self._messages:
                self._load({k: route for k, route in self._messages.items() if k != gsi})
            self._used.discard(gsi)

    def _load(self, messages: dict[int, MsiRoute]) -> None:
        self._table.set_gsi_routing([*self._fixed, *messages.values()])
        self._messages = messages
