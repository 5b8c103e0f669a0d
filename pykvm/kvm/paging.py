"""Guest-virtual memory of a vCPU in 64-bit mode, read through the guest's own page tables.

Pure: works on any :class:`~pykvm.memory.ram.Ram`. The guest writes the page
tables, so they are hostile: a table outside RAM counts as not present, and a
walk ends after its four or five levels in any case. Accessed and dirty bits
are not set. Source: Intel SDM volume 3, §4.5.
"""

from pykvm.kvm.guest_fault import GP_VECTOR, PF_VECTOR, Fault, GuestFault
from pykvm.lean.typing_names import Protocol
from pykvm.memory.ram import GuestAddressError, Ram

NOT_PRESENT = -1
"""No page is mapped at the address."""
NOT_WRITABLE = -2
"""A page is mapped there, but it is read-only."""
NOT_EXECUTABLE = -3
"""A page is mapped there, but it holds data only."""

_PRESENT = 1 << 0
_WRITABLE = 1 << 1
_PAGE_SIZE = 1 << 7
_NO_EXECUTE = 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000
_CR0_WP = 1 << 16
_CR4_LA57 = 1 << 12


class ControlRegisters(Protocol):
    """The registers that paging depends on, as in ``struct kvm_sregs``."""

    cr0: int
    cr3: int
    cr4: int


def walk(
    ram: Ram, cr3: int, address: int, *, levels: int = 4, write: bool = False, fetch: bool = False
) -> int:
    """Guest-physical address of guest-virtual ``address``, or one of the NOT_* above.

    ``levels`` is 4, or 5 with CR4.LA57; ``write`` asks for a page that may be
    written, ``fetch`` for one that may be executed. The result may lie outside
    RAM (MMIO).
    """
    table = cr3 & _ADDRESS
    shift = 3 + 9 * levels
    writable, no_execute = _WRITABLE, 0
    while True:
        offset = ram.translate(table + ((address >> shift) & 511) * 8, 8)
        if offset < 0:
            return NOT_PRESENT
        entry = ram.u64[offset >> 3]
        if not entry & _PRESENT:
            return NOT_PRESENT
        writable &= entry
        no_execute |= entry & _NO_EXECUTE
        if shift == 12 or (shift <= 30 and entry & _PAGE_SIZE):
            break
        table = entry & _ADDRESS
        shift -= 9
    if write and not writable:
        return NOT_WRITABLE
    if fetch and no_execute:
        return NOT_EXECUTABLE
    inside = (1 << shift) - 1
    return (entry & _ADDRESS & ~inside) | (address & inside)


class GuestView:
    """Guest-virtual memory as the guest's kernel sees it: the Memory of the emulator."""

    def __init__(self, ram: Ram, registers: ControlRegisters) -> None:
        self._ram = ram
        self._cr3 = registers.cr3
        self._levels = 5 if registers.cr4 & _CR4_LA57 else 4
        self._protect = bool(registers.cr0 & _CR0_WP)

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at ``address``; GuestFault, or GuestAddressError if not in RAM."""
        return b"".join(
            self._ram.read(physical, size) for physical, size in self._pieces(address, length)
        )

    def fetch(self, address: int, length: int) -> bytes:
        """Like :meth:`read`, of pages that may be executed."""
        pieces = self._pieces(address, length, fetch=True)
        return b"".join(self._ram.read(physical, size) for physical, size in pieces)

    def instruction(self, rip: int) -> bytes:
        """The bytes at ``rip``: 15, or those before the end of its page, or none."""
        for length in (15, min(15, 0x1000 - (rip & 0xFFF))):
            try:
                return self.fetch(rip, length)
            except (GuestFault, GuestAddressError):
                continue
        return b""

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at ``address``, all or nothing; GuestFault or GuestAddressError."""
        pieces = self._pieces(address, len(data), write=True)
        # Both pages must be there before the first byte changes.
        for physical, size in pieces:
            self._ram.read(physical, size)
        done = 0
        for physical, size in pieces:
            self._ram.write(physical, data[done : done + size])
            done += size

    def physical(self, address: int) -> int:
        """Guest-physical address of ``address``; GuestFault."""
        return self._translate(address, write=False, fetch=False)

    def _pieces(
        self, address: int, length: int, write: bool = False, fetch: bool = False
    ) -> list[tuple[int, int]]:
        pieces = []
        while length:
            size = min(length, 0x1000 - (address & 0xFFF))
            pieces.append((self._translate(address, write, fetch), size))
            address = (address + size) & 0xFFFF_FFFF_FFFF_FFFF
            length -= size
        return pieces

    def _translate(self, address: int, write: bool, fetch: bool) -> int:
        if not is_canonical(address, self._levels):
            raise GuestFault(Fault(GP_VECTOR, 0))
        physical = walk(
            self._ram,
            self._cr3,
            address,
            levels=self._levels,
            write=write and self._protect,
            fetch=fetch,
        )
        if physical < 0:
            error_code = (physical != NOT_PRESENT) | (write << 1) | (fetch << 4)
            raise GuestFault(Fault(PF_VECTOR, error_code, address))
        return physical


def is_canonical(address: int, levels: int = 4) -> bool:
    """Whether the upper bits of a 64-bit address all equal its highest usable bit."""
    upper = address >> (11 + 9 * levels)
    return upper in {0, (1 << (53 - 9 * levels)) - 1}
