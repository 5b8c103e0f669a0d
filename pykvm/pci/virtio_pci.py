"""The virtio-pci transport, modern only (virtio 1.2 §4.1).

BAR 0, 16 KiB unless a device has more than 1024 queues::

    0x0000  common configuration   §4.1.4.3
    0x1000  ISR status             §4.1.4.5   reading clears it and lowers INTx
    0x2000  device configuration   §4.1.4.6
    0x3000  notifications          §4.1.4.4   4 bytes per queue, one doorbell each

BAR 1 holds the MSI-X table. The PCI-cfg capability (§4.1.4.9) reaches both.

A notification is a doorbell: an ioeventfd at the queue's address, so it causes
no exit to Python. Its value is ignored and may have any width, because each queue
has a separate address, and the ring contains the data that
VIRTIO_F_NOTIFICATION_DATA (§2.9) adds. Doorbells are bound while the device is active
and BAR 0 is decoded, and move with BAR 0. A notification that reaches Python
through PCI-cfg signals the same eventfd. An interrupt is a write to the
vector's eventfd, which causes no exit. Without MSI-X it is an ISR bit and INTx. A
configuration change sets its ISR bit in both cases.

While the driver does not let the function be a bus master (PCI 3.0 §6.2.2), the
device is held: it does not look at its rings, and MSIs wait. The driver may set
the bit before or after DRIVER_OK.

A common configuration field takes accesses of exactly its width, and a 64-bit field
also two 32-bit halves (§4.1.3.1). All other accesses read 0 and write nothing.

Locks: ``_lock`` serialises the driver's accesses and is held while a reset or a hold
waits for the device. So the device's threads, which call :meth:`VirtioPci.queue_interrupt`
and :meth:`VirtioPci.config_interrupt`, never take it.
"""

import os
from struct import pack
from threading import Lock

from pykvm.bus import BusDevice
from pykvm.errors import HostError, PykvmError, shortage
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.memory.ram import Ram
from pykvm.pci.common_cfg import COMMON_SIZE, VIRTIO_MSI_NO_VECTOR, CommonConfig, Vectors
from pykvm.pci.config import Intx, PciFunction
from pykvm.pci.msix import MsixTable
from pykvm.pci.services import PciServices
from pykvm.virtio.device import VirtioDevice
from pykvm.virtio.fence import queue_fence
from pykvm.virtio.registers import TransportState

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

VIRTIO_PCI_VENDOR = 0x1AF4
VIRTIO_PCI_DEVICE_BASE = 0x1040

PCI_CAP_ID_VNDR = 0x09
VIRTIO_PCI_CAP_COMMON_CFG = 1
VIRTIO_PCI_CAP_NOTIFY_CFG = 2
VIRTIO_PCI_CAP_ISR_CFG = 3
VIRTIO_PCI_CAP_DEVICE_CFG = 4
VIRTIO_PCI_CAP_PCI_CFG = 5

VIRTIO_PCI_ISR_QUEUE = 1
VIRTIO_PCI_ISR_CONFIG = 2

COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
NOTIFY_MULTIPLIER = 4

CLASS_STORAGE_OTHER = 0x018000


class VirtioPci(PciFunction):
    """One virtio device on PCI. Owns ``device``: :meth:`close` closes it.

    ``state`` has the transport-independent registers.
    """

    def __init__(
        self,
        device: VirtioDevice,
        ram: Ram,
        services: PciServices,
        *,
        class_code: int = CLASS_STORAGE_OTHER,
    ) -> None:
        super().__init__(
            vendor=VIRTIO_PCI_VENDOR,
            device=VIRTIO_PCI_DEVICE_BASE + device.device_id,
            class_code=class_code,
            revision=1,
            subsystem=(VIRTIO_PCI_VENDOR, VIRTIO_PCI_DEVICE_BASE + device.device_id),
            interrupt_pin=1,
        )
        assert len(device.config) <= NOTIFY - DEVICE, (
            "the configuration space is larger than its page"
        )
        count = len(device.queue_sizes)
        self.device = device
        self._services = services
        self._lock = Lock()
        self._kicks: list[int] = []
        self.state = TransportState(device, ram, self._kicks, self, fence=queue_fence())
        self._vectors = Vectors(count + 1, count)
        self._common = CommonConfig(self.state, self._vectors, self._was_reset)
        self._doorbells: dict[int, int] = {}  # the address of each, by its queue
        self._bound_to: int | None = None  # the address of BAR 0 when they were bound
        self._held = True
        device.hold()
        assert self.intx is not None
        self._intx: Intx = self.intx
        size = 1 << (NOTIFY + NOTIFY_MULTIPLIER * count - 1).bit_length()
        self._bar = self.add_bar(0, size, self)
        self.msix = MsixTable(services, self, bar=1, count=count + 1, lacks=self._lacks)
        self._pci_cfg = self._add_capabilities(count)
        try:
            for _ in range(count):
                self._kicks.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except BaseException:
            self._release()
            raise

    def _add_capabilities(self, queues: int) -> int:
        config_size = len(self.device.config)
        for kind, offset, length, extra in (
            (VIRTIO_PCI_CAP_COMMON_CFG, COMMON, COMMON_SIZE, b""),
            (
                VIRTIO_PCI_CAP_NOTIFY_CFG,
                NOTIFY,
                NOTIFY_MULTIPLIER * queues,
                pack("<I", NOTIFY_MULTIPLIER),
            ),
            (VIRTIO_PCI_CAP_ISR_CFG, ISR, 1, b""),
            (VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE, config_size, b""),
        ):
            if length:
                body = pack("<BBBxxxII", 16 + len(extra), kind, 0, offset, length) + extra
                self.add_capability(PCI_CAP_ID_VNDR, body)
        body = pack("<BBBxxxIII", 20, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 0, 0)
        mask = pack("<BBBxxxIII", 0, 0, 0xFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        return self.add_capability(PCI_CAP_ID_VNDR, body, mask)

    # -- interrupts: any thread, never ``_lock`` ---------------------------

    def queue_interrupt(self, index: int) -> None:
        """Interrupt the driver, because queue ``index`` has used buffers (§4.1.5.3)."""
        if self.msix.enabled:
            self._message(self._vectors.queues[index])
        else:
            self._intx.raise_(VIRTIO_PCI_ISR_QUEUE)

    def config_interrupt(self) -> None:
        """Interrupt the driver for a configuration change or DEVICE_NEEDS_RESET (§4.1.5.4).

        With MSI-X, too, it sets the ISR status (§4.1.4.5.1), because a vector may be shared.
        """
        self._intx.raise_(VIRTIO_PCI_ISR_CONFIG)
        if self.msix.enabled:
            self._message(self._vectors.config)

    def _message(self, vector: int) -> None:
        if vector != VIRTIO_MSI_NO_VECTOR:
            self.msix.signal(vector)

    # -- BAR 0 -------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The driver reads the virtio structures."""
        with self._lock:
            if offset < ISR:
                return self._common.read(offset, size)
            if offset < DEVICE:
                return self._intx.take() if offset == ISR else 0
            return self.state.config.read(offset - DEVICE, size) if offset < NOTIFY else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The driver writes the virtio structures."""
        with self._lock:
            if offset < ISR:
                self._common.write(offset, size, value)
                self._bind_doorbells()
            elif offset >= NOTIFY:
                self._notify((offset - NOTIFY) // NOTIFY_MULTIPLIER)
            elif offset >= DEVICE:
                self.state.config.write(offset - DEVICE, size, value)

    def _notify(self, queue: int) -> None:
        if self.state.active and queue < len(self._kicks):
            os.eventfd_write(self._kicks[queue], 1)

    @property
    def notifications(self) -> int:
        """The notifications of the driver since this function was made, in all queues.

        Nobody reads the eventfds, so that each one's counter is the number of its notifications.
        """
        from pykvm.host.eventfd import count_of

        with self._lock:
            return sum(count_of(kick) for kick in self._kicks)

    # -- configuration space -----------------------------------------------

    def attach(self, number: int) -> None:
        """Take the interrupt line of device ``number``."""
        self._intx.connect(self._services, number)

    def detach(self) -> None:
        """Leave the interrupt line."""
        self._intx.disconnect()

    def read_config(self, offset: int, size: int) -> int:
        """As in the base class; reading pci_cfg_data reads the BAR (§4.1.4.9)."""
        if offset & ~3 == self._pci_cfg + 16 and (target := self._pci_cfg_target()):
            device, at, length = target
            value = device.read(at, length) & (1 << 8 * length) - 1
            self.config.set(self._pci_cfg + 16, length, value)
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """As in the base class; writing pci_cfg_data writes the BAR (§4.1.4.9)."""
        super().write_config(offset, size, value)
        if offset & ~3 == self._pci_cfg + 16 and (target := self._pci_cfg_target()):
            device, at, length = target
            device.write(at, length, self.config.get(self._pci_cfg + 16, length))
        if self._held == self.bus_master:
            self._hold(not self.bus_master)
        self.msix.configured()
        if self._intx.suppressed != self.msix.enabled:
            self._intx.suppressed = self.msix.enabled
            self._intx.update()

    def _hold(self, held: bool) -> None:
        with self._lock:
            self._set_held(held)

    def _set_held(self, held: bool) -> None:
        self._held = held
        if held:
            self.device.hold()
        else:
            self.device.release()

    def _lacks(self, lack: str) -> None:
        with self._lock:
            self.state.lacks(lack)
            self._bind_doorbells()

    def _pci_cfg_target(self) -> tuple[BusDevice, int, int] | None:
        index = self.config.bytes[self._pci_cfg + 4]
        at, length = (self.config.get(self._pci_cfg + where, 4) for where in (8, 12))
        if length not in (1, 2, 4) or at % length:
            return None
        for bar in self.bars:
            if bar.index == index and at + length <= bar.size:
                return bar.device, at, length
        return None

    def placed(self) -> None:
        """Move the doorbells, because BAR 0 may have moved."""
        with self._lock:
            self._bind_doorbells()

    def _bind_doorbells(self) -> None:
        wanted = self._bar.address if self.state.active else None
        if wanted == self._bound_to:
            return
        for index, address in self._doorbells.items():
            self._services.unbind_doorbell(address, 0, self._kicks[index])
        self._doorbells.clear()
        self._bound_to = wanted
        if wanted is None:
            return
        for index, kick in enumerate(self._kicks):
            address = wanted + NOTIFY + NOTIFY_MULTIPLIER * index
            try:
                self._services.bind_doorbell(address, 0, kick)
            except (PykvmError, OSError) as error:
                if not shortage(error):
                    raise
                continue  # notifications of this queue are then vCPU exits
            self._doorbells[index] = address

    # -- snapshots ---------------------------------------------------------

    def save(self) -> "Fields":
        """As in the base class, with all the registers. The device's owner has paused it."""
        with self._lock:
            return {
                "function": super().save(),
                "vectors": self._vectors.save(),
                "msix": self.msix.save(),
                "isr": self._intx.bits,
                "virtio": self.state.save(),
            }

    def load(self, saved: "Saved") -> None:
        """As in the base class, from any state, while the device's owner has paused it.

        The device serves again when its owner resumes it. SnapshotError, and the device is reset.
        """
        try:
            with self._lock:
                super().load(saved.part("function"))
                self._vectors.load(saved.part("vectors"))
                isr = saved.integer("isr", 0, VIRTIO_PCI_ISR_QUEUE | VIRTIO_PCI_ISR_CONFIG)
                if self._held == self.bus_master:
                    self._set_held(not self.bus_master)
                self.state.load(saved.part("virtio"))
                if self.bar_register(self._bar) == self._bar.address:
                    self._bind_doorbells()  # else the host moves the BAR next, and says so
                active = self.state.active
            self.msix.load(saved.part("msix"))
            saved.end()
            if active and not self.state.active:
                raise HostError(f"a saved disk cannot go on: {self.state.reason}")
        except BaseException as error:
            with self._lock:
                self.state.reset()
                self._bind_doorbells()
            if isinstance(error, OSError) and (lack := shortage(error)):
                raise HostError(f"a saved disk cannot go on: the host lacks {lack}") from None
            raise
        self._intx.suppressed = self.msix.enabled
        self._intx.load(isr)
        if isr & VIRTIO_PCI_ISR_CONFIG and self.state.active:
            self.config_interrupt()  # the saved driver may not have received it

    # -- the end -----------------------------------------------------------

    def _was_reset(self) -> None:
        # After a reset the device sends no interrupt (§2.4.1), not even an earlier one.
        self._intx.take()
        self.msix.forget()

    def close(self) -> None:
        """Close the device, then release doorbells, vectors and eventfds."""
        self.device.close()
        with self._lock:
            self._bar.address = None
            self._bind_doorbells()
        self._intx.take()  # other functions may share the line
        self._release()

    def _release(self) -> None:
        self.msix.close()
        while self._kicks:
            os.close(self._kicks.pop())
