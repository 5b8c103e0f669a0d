"""PCI bus 0: configuration mechanism 1, the host bridge, and the placement of BARs.

Mechanism 1 (PCI 3.0 §3.2.2.3.2): a 32-bit write to port 0xCF8 latches bus,
device, function and register; ports 0xCFC-0xCFF then access it. A byte written
to port 0xCF9 goes to the PC's reset control, which lies in between.

The host places BARs again after every configuration write that may move one. It
decodes a BAR if its function's memory decoding is on and the BAR lies wholly in
the window that the host forwards to PCI. Of two BARs that overlap, the one with the
lower device and BAR number wins. A function that is plugged in later gets addresses that
no other BAR has, wherever the guest has moved them. A BAR that overlaps a device outside PCI on the
MMIO bus loses. So a hostile placement only makes the guest's own BAR vanish. The
window reaches from the end of RAM to the I/O APIC, as on a PC, because a kernel
without ACPI may put a BAR anywhere there. Linux puts it right above RAM.

Lock order: the host's lock (configuration space, placement), a function's
lock, the bus's lock. Accesses to a decoded BAR take no host lock.
"""

from collections.abc import Callable
from threading import Lock

from pykvm.bus import Bus
from pykvm.errors import UsageError
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.pci.config import PCI_COMMAND, PCI_COMMAND_MEMORY, Bar, PciFunction

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

CONFIG_PORT = 0xCF8
CONFIG_PORTS = 8
"""Ports 0xCF8 to 0xCFF belong to :class:`PciHost`."""

DECODE_START = 0xC000_0000
"""The highest possible end of RAM below 4 GiB. BARs may lie from here on in every machine."""
ASSIGN_START = 0xE000_0000
"""The first address at which the VMM puts BARs."""
DECODE_END = 0xFEC0_0000
"""The end of the window: here begin the I/O APIC and other devices of the PC."""

MAX_DEVICES = 32
_ENABLE = 0x8000_0000
_RESET_CONTROL = 1
_HEADER_END = 0x40
"""Writes from here on, to capabilities, do not move a BAR."""
_PAGE = 4096


class HostBridge(PciFunction):
    """Device 0: an Intel 440FX (8086:1237), which Linux takes as proof of mechanism 1."""

    def __init__(self) -> None:
        super().__init__(vendor=0x8086, device=0x1237, class_code=0x060000, revision=2)


class PciHost:
    """Owns the functions of bus 0; a :class:`~pykvm.bus.BusDevice` for ports 0xCF8-0xCFF.

    ``functions`` maps device numbers to functions; number 0 is the bridge.
    """

    def __init__(
        self,
        mmio: Bus,
        reset_control: Callable[[int], None] | None = None,
        *,
        decode_start: int = DECODE_START,
    ) -> None:
        """Decode BARs on ``mmio``. ``reset_control`` gets each byte written to port 0xCF9.

        ``decode_start``: the end of RAM below 4 GiB, from which on BARs may lie.
        """
        assert decode_start <= DECODE_START, "RAM reaches into the addresses of BARs"
        self.functions: dict[int, PciFunction] = {0: HostBridge()}
        self._mmio = mmio
        self._reset_control = reset_control
        self._decode_start = decode_start
        self._lock = Lock()
        self._latch = 0
        self._reset_byte = 0
        self._decoded: dict[int, tuple[int, Bar]] = {}
        self._told: dict[int, int] = {}

    # -- building ----------------------------------------------------------

    def add(self, function: PciFunction) -> int:
        """Plug ``function`` in, place its BARs, enable memory decoding; return its device number.

        The host owns it from now on. UsageError if the bus or the window is
        full, which closes the function.
        """
        try:
            return self._add(function)
        except BaseException:
            function.close()
            raise

    def _add(self, function: PciFunction) -> int:
        with self._lock:
            number = next(n for n in range(MAX_DEVICES + 1) if n not in self.functions)
            if number >= MAX_DEVICES:
                raise UsageError(f"a PCI bus holds {MAX_DEVICES} devices", "use fewer disks")
            for bar in function.bars:
                self._assign(function, bar)
            command = function.config.get(PCI_COMMAND, 2) | PCI_COMMAND_MEMORY
            function.config.set(PCI_COMMAND, 2, command)
            self.functions[number] = function
            function.number = number
            function.attach(number)
            self._place()
            return number

    def remove(self, number: int) -> None:
        """Unplug function ``number`` and close it. No vCPU runs meanwhile.

        From then on its registers read as all ones, like those of an empty slot.
        """
        with self._lock:
            function = self.functions.pop(number)
            # Its doorbells go before other BARs take its place.
            for bar in function.bars:
                bar.address = None
            function.placed()
            self._place()
        function.close()

    def _assign(self, function: PciFunction, bar: Bar) -> None:
        """Put ``bar`` where no other one is, whether or not the guest has moved that."""
        # At least a page for each, so that a guest kernel can map a BAR without its neighbour.
        align = max(bar.size, _PAGE)
        taken = sorted(
            (other.bar_register(one), other.bar_register(one) + max(one.size, _PAGE))
            for other in (*self.functions.values(), function)
            for one in other.bars
            if one is not bar
        )
        address = ASSIGN_START
        for start, end in taken:
            if address < end and start < address + align:
                address = -(-end // align) * align
        if address + bar.size > DECODE_END:
            raise UsageError("the PCI memory window is full", "use fewer or smaller devices")
        function.set_bar_register(bar, address)

    def close(self) -> None:
        """Close every function and take their BARs off the bus."""
        with self._lock:
            for address in self._decoded:
                self._mmio.remove(address)
            self._decoded.clear()
            for function in self.functions.values():
                function.close()

    def save(self) -> "Fields":
        """The latch, and each function by its device number. No vCPU runs meanwhile."""
        with self._lock:
            functions = [
                {"number": number, "state": function.save()}
                for number, function in sorted(self.functions.items())
            ]
            return {"latch": self._latch, "reset": self._reset_byte, "functions": functions}

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave, and place the BARs. SnapshotError.

        The host needs the functions that the saved one had, in the order of their numbers. They
        get the saved numbers, which have gaps if functions were unplugged.
        """
        with self._lock:
            self._latch = saved.integer("latch", 0, 0xFFFFFFFC) & 0xFFFFFFFC
            self._reset_byte = saved.integer("reset", 0, 0xFF)
            least, functions = 0, sorted(self.functions.items())
            for (own, function), one in zip(
                functions, saved.parts("functions", len(functions)), strict=True
            ):
                number = one.integer("number", least, MAX_DEVICES - 1 if own else 0)
                least = number + 1
                if number != own:
                    self._move(function, number)
                function.load(one.part("state"))
                one.end()
            saved.end()
            self.functions = {function.number: function for _, function in functions}
            self._place()

    def _move(self, function: PciFunction, number: int) -> None:
        function.detach()
        function.number = number
        function.attach(number)

    # -- ports -------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read port 0xCF8 + ``offset``."""
        ones = (1 << 8 * size) - 1
        if offset == 0 and size == 4:
            return self._latch
        if offset == _RESET_CONTROL and size == 1:
            return self._reset_byte
        if offset < 4:
            return ones
        with self._lock:
            target = self._target(offset - 4, size)
            return target[0].read_config(target[1], size) & ones if target else ones

    def write(self, offset: int, size: int, value: int) -> None:
        """Write port 0xCF8 + ``offset``."""
        if offset == 0 and size == 4:
            self._latch = value & 0xFFFFFFFC
        elif offset == _RESET_CONTROL and size == 1:
            self._reset_byte = value
            if self._reset_control:
                self._reset_control(value)
        elif offset >= 4:
            with self._lock:
                target = self._target(offset - 4, size)
                if target:
                    target[0].write_config(target[1], size, value)
                    if target[1] < _HEADER_END:
                        self._place()

    def _target(self, byte: int, size: int) -> tuple[PciFunction, int] | None:
        latch = self._latch
        bus, device, number = latch >> 16 & 0xFF, latch >> 11 & 0x1F, latch >> 8 & 0x7
        function = self.functions.get(device)
        if not latch & _ENABLE or bus or number or function is None or byte + size > 4:
            return None
        return function, (latch & 0xFC) + byte

    # -- placement ---------------------------------------------------------

    def _place(self) -> None:
        wanted = self._wanted()
        for address, (_, bar) in list(self._decoded.items()):
            if wanted.get(address, (0, None))[1] is not bar:
                self._mmio.remove(address)
                del self._decoded[address]
        for address, (number, bar) in wanted.items():
            if address in self._decoded:
                continue
            try:
                self._mmio.add(address, bar.size, bar.device)
            except ValueError:  # a device outside PCI has the address
                continue
            self._decoded[address] = (number, bar)
        where = {id(bar): address for address, (_, bar) in self._decoded.items()}
        # All BARs leave their old places before one takes a new place, because a doorbell can be
        # bound only once.
        self._tell({key: at for key, at in where.items() if self._told.get(key) == at})
        self._tell(where)

    def _tell(self, where: dict[int, int]) -> None:
        """Give each BAR its address in ``where``, by identity, and tell the functions."""
        self._told = where
        for _, function in sorted(self.functions.items()):
            changed = False
            for bar in function.bars:
                address = where.get(id(bar))
                changed |= bar.address != address
                bar.address = address
            if changed:
                function.placed()

    def _wanted(self) -> dict[int, tuple[int, Bar]]:
        wanted: dict[int, tuple[int, Bar]] = {}
        for number, function in sorted(self.functions.items()):
            if not function.memory_enabled:
                continue
            for bar in function.bars:
                address = function.bar_register(bar)
                end = address + bar.size
                inside = address >= self._decode_start and end <= DECODE_END
                taken = any(
                    address < other + taken_bar.size and other < end
                    for other, (_, taken_bar) in wanted.items()
                )
                if inside and not taken:
                    wanted[address] = (number, bar)
        return wanted
