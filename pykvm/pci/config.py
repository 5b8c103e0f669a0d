"""One PCI function: its configuration space, capabilities and memory BARs (PCI 3.0 §6).

The space is 256 bytes with a mask of the bits that the driver may write. The
mask also tells the driver a BAR's size: the low address bits are not writable,
so they stay 0 when the driver writes all ones (§6.2.5.1).

Threads: :class:`pykvm.pci.host.PciHost` serialises all accesses to the
configuration space and the placement of BARs.
"""

from threading import Lock

from pykvm.bus import BusDevice
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.pci.services import InterruptLine, PciServices

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

CONFIG_SIZE = 256

PCI_VENDOR_ID = 0x00
PCI_DEVICE_ID = 0x02
PCI_COMMAND = 0x04
PCI_STATUS = 0x06
PCI_REVISION_ID = 0x08
PCI_CLASS_PROG = 0x09
PCI_BASE_ADDRESS_0 = 0x10
PCI_SUBSYSTEM_VENDOR_ID = 0x2C
PCI_CAPABILITY_LIST = 0x34
PCI_INTERRUPT_LINE = 0x3C
PCI_INTERRUPT_PIN = 0x3D

PCI_COMMAND_MEMORY = 0x2
PCI_COMMAND_MASTER = 0x4
PCI_COMMAND_INTX_DISABLE = 0x400
PCI_STATUS_INTERRUPT = 0x08
PCI_STATUS_CAP_LIST = 0x10

FIRST_CAPABILITY = 0x40
BARS = 6
MIN_BAR_SIZE = 16


class Bar:
    """A 32-bit memory BAR: ``size`` bytes served by ``device``.

    The host decodes it at ``address``. None: the host does not decode it,
    because memory decoding is off or the address is impossible.
    """

    def __init__(self, index: int, size: int, device: BusDevice) -> None:
        self.index = index
        self.size = size
        self.device = device
        self.address: int | None = None


class ConfigSpace:
    """256 bytes and the bits that the driver may write. Little-endian."""

    def __init__(self) -> None:
        self.bytes = bytearray(CONFIG_SIZE)
        self.mask = bytearray(CONFIG_SIZE)

    def get(self, offset: int, size: int) -> int:
        """The value at ``offset``."""
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int, mask: int | None = None) -> None:
        """Put ``value`` at ``offset``. ``mask``: the bits that the driver may write there."""
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")
        if mask is not None:
            self.mask[offset : offset + size] = mask.to_bytes(size, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """The driver writes: only writable bits change."""
        mask = int.from_bytes(self.mask[offset : offset + size], "little")
        self.set(offset, size, self.get(offset, size) & ~mask | value & mask)


class PciFunction:
    """A single-function device on bus 0. Subclasses add BARs, capabilities and behaviour.

    ``number`` is its device number, once it is plugged in.
    """

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        interrupt_pin: int = 0,
    ) -> None:
        """``class_code`` is base class, subclass and interface, 0xBBSSII; ``subsystem`` is
        (vendor, device); ``interrupt_pin`` 1 for INTA#, 0 for none.
        """
        self.number = 0
        self.bars: list[Bar] = []
        self.config = config = ConfigSpace()
        config.set(PCI_VENDOR_ID, 2, vendor)
        config.set(PCI_DEVICE_ID, 2, device)
        config.set(PCI_REVISION_ID, 1, revision)
        config.set(PCI_CLASS_PROG, 3, class_code)
        config.set(PCI_SUBSYSTEM_VENDOR_ID, 2, subsystem[0])
        config.set(PCI_SUBSYSTEM_VENDOR_ID + 2, 2, subsystem[1])
        config.set(PCI_INTERRUPT_PIN, 1, interrupt_pin)
        config.set(PCI_INTERRUPT_LINE, 1, 0xFF, 0xFF)
        config.set(PCI_COMMAND, 2, 0, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
        config.set(0x0C, 1, 0, 0xFF)  # cache line size: writable, without effect
        self._capability_end = FIRST_CAPABILITY
        self._last_link = PCI_CAPABILITY_LIST
        self.intx: Intx | None = None
        if interrupt_pin:
            mask = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE
            config.set(PCI_COMMAND, 2, 0, mask)
            self.intx = Intx(config)

    # -- building ----------------------------------------------------------

    def add_bar(self, index: int, size: int, device: BusDevice) -> Bar:
        """Give the function a memory BAR of ``size`` bytes, a power of 2 from 16."""
        assert size >= MIN_BAR_SIZE, "the low four bits of a BAR are not address bits"
        assert not size & (size - 1), "a BAR's size is a power of 2"
        assert index in set(range(BARS)) - {bar.index for bar in self.bars}
        bar = Bar(index, size, device)
        self.bars.append(bar)
        self.config.set(PCI_BASE_ADDRESS_0 + 4 * index, 4, 0, 0xFFFFFFFF & ~(size - 1))
        return bar

    def add_capability(self, identifier: int, body: bytes, mask: bytes = b"") -> int:
        """Append a capability, whose ``body`` follows two header bytes; return its offset.

        ``mask`` has the writable bits of ``body``. It may be shorter: the rest is read-only.
        """
        at = self._capability_end
        end = at + 2 + len(body)
        assert end <= CONFIG_SIZE, "the capabilities do not fit"
        config = self.config
        config.bytes[at] = identifier
        config.bytes[at + 2 : end] = body
        config.mask[at + 2 : at + 2 + len(mask)] = mask
        config.bytes[self._last_link] = at
        config.bytes[PCI_STATUS] |= PCI_STATUS_CAP_LIST
        self._last_link = at + 1
        self._capability_end = (end + 3) & ~3
        return at

    # -- state -------------------------------------------------------------

    @property
    def memory_enabled(self) -> bool:
        """The command register lets the function decode memory addresses."""
        return bool(self.config.bytes[PCI_COMMAND] & PCI_COMMAND_MEMORY)

    @property
    def bus_master(self) -> bool:
        """The command register lets the function access memory, and so send MSIs."""
        return bool(self.config.bytes[PCI_COMMAND] & PCI_COMMAND_MASTER)

    def bar_register(self, bar: Bar) -> int:
        """The address in the BAR's register, even if it is not decoded."""
        return self.config.get(PCI_BASE_ADDRESS_0 + 4 * bar.index, 4) & ~0xF

    def set_bar_register(self, bar: Bar, address: int) -> None:
        """Place a BAR, as firmware does before the guest starts."""
        self.config.set(PCI_BASE_ADDRESS_0 + 4 * bar.index, 4, address)

    # -- calls from the host -----------------------------------------------

    def attach(self, number: int) -> None:
        """The function has become device ``number`` of bus 0."""

    def detach(self) -> None:
        """The function gets a different number: it gives up its interrupt line."""

    def read_config(self, offset: int, size: int) -> int:
        """The driver reads 1, 2 or 4 bytes within a doubleword."""
        value = self.config.get(offset, size)
        if offset <= PCI_STATUS < offset + size and self.intx and self.intx.pending:
            value |= PCI_STATUS_INTERRUPT << 8 * (PCI_STATUS - offset)
        return value

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver writes. The host decides afterwards where BARs are decoded."""
        self.config.write(offset, size, value)
        if self.intx and offset <= PCI_COMMAND + 1:
            self.intx.update()

    def save(self) -> "Fields":
        """The configuration space. No vCPU runs meanwhile."""
        return {"config": bytes(self.config.bytes)}

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave; the host places the BARs after it. SnapshotError.

        Only bits that a driver may write change. The others say what the function is, so they
        have to be the same.
        """
        config, data = self.config, saved.data("config", CONFIG_SIZE, CONFIG_SIZE)
        own, other, mask = (
            int.from_bytes(one, "little") for one in (config.bytes, data, config.mask)
        )
        if (own ^ other) & ~mask:
            saved.refuse("the function is of another kind")
        config.bytes[:] = data
        saved.end()

    def placed(self) -> None:
        """The addresses in ``bars`` have changed."""

    def close(self) -> None:
        """Release the resources of the function."""


class Intx:
    """The INTx interrupt of a function: a pending flag, gated by the command register.

    ``update`` and ``raise_`` may be called from any thread.
    """

    def __init__(self, config: ConfigSpace) -> None:
        self._config = config
        self._line: InterruptLine | None = None
        self._lock = Lock()
        self._level = False
        self._bits = 0
        self.suppressed = False
        """MSI-X is in use, so the line stays low (PCI 3.0 §6.8.3.3). Call update() after."""

    def connect(self, services: PciServices, number: int) -> None:
        """Take the line of device ``number`` and show it in the Interrupt Line register."""
        pin = self._config.bytes[PCI_INTERRUPT_PIN]
        self._line = services.interrupt_line(number, pin)
        self._config.bytes[PCI_INTERRUPT_LINE] = self._line.gsi & 0xFF

    def disconnect(self) -> None:
        """Give up the line, which is low then."""
        self.load(0)
        self._line = None

    @property
    def pending(self) -> bool:
        """The Interrupt Status bit: an interrupt waits, even if the line must not show it."""
        return bool(self._bits) and not self.suppressed

    def raise_(self, bits: int) -> None:
        """Add to the pending bits."""
        with self._lock:
            self._bits |= bits
            self._drive()

    def take(self) -> int:
        """Return the pending bits, and clear them."""
        with self._lock:
            bits, self._bits = self._bits, 0
            self._drive()
            return bits

    @property
    def bits(self) -> int:
        """The pending bits, without clearing them."""
        return self._bits

    def load(self, bits: int) -> None:
        """Have the pending bits of a snapshot."""
        with self._lock:
            self._bits = bits
            self._drive()

    def update(self) -> None:
        """Set the line again, after a change of the command register or of :attr:`suppressed`."""
        with self._lock:
            self._drive()

    def _drive(self) -> None:
        disabled = self._config.get(PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE
        level = self.pending and not disabled
        if level != self._level and self._line:
            self._level = level
            self._line.set(level)
