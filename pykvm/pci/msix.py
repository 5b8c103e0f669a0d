"""MSI-X: one function's vector table and pending bits (PCI 3.0 §6.8.2).

The BAR holds the table from offset 0 and the pending bit array in its upper
half. Each vector is a :class:`~pykvm.pci.services.MsiVector` of the machine:
raising an interrupt writes its eventfd and involves neither this file's lock
nor a vCPU. This file has the parts that change rarely: the table, the masks, and
the interrupts that wait while masked.

A vector delivers while MSI-X is enabled, the function is not masked, the
vector is not masked and the function may be a bus master, because an MSI is a
write to memory. Whenever one of these or the message changes, the vector is routed
again or masked. An interrupt that is raised while the vector is masked stays in its
eventfd, moves to the pending bit array when the driver reads that, and is delivered
on unmasking.
"""

import os
from collections.abc import Callable
from struct import pack
from threading import Lock

from pykvm.errors import PykvmError, shortage
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.pci.config import PciFunction
from pykvm.pci.services import MsiVector, PciServices

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

PCI_CAP_ID_MSIX = 0x11
MSIX_CONTROL_ENABLE = 0x8000
MSIX_CONTROL_MASKALL = 0x4000
MSIX_ENTRY_SIZE = 16
MSIX_ENTRY_MASKED = 1
MAX_VECTORS = 2048

_MASKED_ENTRY = pack("<IIII", 0, 0, 0, MSIX_ENTRY_MASKED)
_RESERVED = pack("<IIII", 3, 0, 0, 0xFFFFFFFF & ~MSIX_ENTRY_MASKED)
"""The bits of an entry that are always 0."""


class MsixTable:
    """The MSI-X structures of ``function``; a bus device for the BAR that holds them.

    ``enabled``: the function uses MSI-X instead of INTx. Table and pending
    bits take aligned accesses of 4 or 8 bytes (§6.8.2); other accesses read 0
    and write nothing. The pending bits are read-only.
    """

    def __init__(
        self,
        services: PciServices,
        function: PciFunction,
        bar: int,
        count: int,
        lacks: Callable[[str], None],
    ) -> None:
        """Add the BAR and the capability for ``count`` vectors, all masked, MSI-X disabled.

        ``lacks`` is called with the resource that the host lacks to deliver a
        vector. The vector stays masked until the driver next changes it.
        """
        assert 1 <= count <= MAX_VECTORS
        self.count = count
        self.enabled = False
        self.size = max(4096, 1 << (2 * MSIX_ENTRY_SIZE * count - 1).bit_length())
        self._pba = self.size // 2
        self._table = bytearray(_MASKED_ENTRY * count)
        self._waiting = [False] * count
        self._routed: list[bytes | None] = [None] * count
        self._function_masked = False
        self._lock = Lock()
        self._lack = ""
        self._lacks = lacks
        self._vectors: list[MsiVector] = []
        try:
            for _ in range(count):
                self._vectors.append(services.msi_vector())
        except BaseException:
            self.close()
            raise
        self._eventfds = [vector.eventfd for vector in self._vectors]
        self._function = function
        function.add_bar(bar, self.size, self)
        body = pack("<HII", count - 1, bar, self._pba | bar)
        mask = pack("<H", MSIX_CONTROL_ENABLE | MSIX_CONTROL_MASKALL)
        self._capability = function.add_capability(PCI_CAP_ID_MSIX, body, mask)

    def signal(self, index: int) -> None:
        """Raise vector ``index`` < ``count``. Any thread; takes no lock."""
        os.eventfd_write(self._eventfds[index], 1)

    def configured(self) -> None:
        """Apply a change of the capability's Message Control, or of the command register."""
        with self._lock:
            if not self._read_control():
                return
            for index in range(self.count):
                self._update(index)
            if not self.enabled:  # pending interrupts belong to the mode that ended
                self._forget()
        self._tell()

    def _read_control(self) -> bool:
        """Set ``enabled`` and the mask of the function; True if one of them has changed."""
        control = self._function.config.get(self._capability + 2, 2)
        enabled = bool(control & MSIX_CONTROL_ENABLE)
        masked = bool(control & MSIX_CONTROL_MASKALL) or not self._function.bus_master
        before = self.enabled, self._function_masked
        self.enabled, self._function_masked = enabled, masked
        return before != (enabled, masked)

    def forget(self) -> None:
        """Drop interrupts that wait to be unmasked, because the device was reset."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        for index, vector in enumerate(self._vectors):
            vector.take_pending()
            self._waiting[index] = False

    # -- the BAR -----------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read the table or the pending bits."""
        if size not in (4, 8) or offset % size:
            return 0
        with self._lock:
            if offset < len(self._table):
                return int.from_bytes(self._table[offset : offset + size], "little")
            return self._pending(8 * (offset - self._pba), 8 * size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the table; the pending bits are read-only."""
        if size not in (4, 8) or offset % size or offset >= len(self._table):
            return
        with self._lock:
            self._table[offset : offset + size] = value.to_bytes(size, "little")
            index = offset // MSIX_ENTRY_SIZE
            # Reserved: the low two bits of the address, all but one of the control word.
            self._table[index * MSIX_ENTRY_SIZE] &= 0xFC
            control = self._table[index * MSIX_ENTRY_SIZE + 12] & MSIX_ENTRY_MASKED
            self._table[(index + 1) * MSIX_ENTRY_SIZE - 4 : (index + 1) * MSIX_ENTRY_SIZE] = pack(
                "<I", control
            )
            self._update(index)
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            lack, self._lack = self._lack, ""
        if lack:
            self._lacks(lack)

    def _pending(self, first: int, bits: int) -> int:
        value = 0
        for index in range(max(first, 0), min(first + bits, self.count)):
            if self._routed[index] is None and self._vectors[index].take_pending():
                self._waiting[index] = True
            value |= self._waiting[index] << (index - first)
        return value

    def _update(self, index: int) -> None:
        at = index * MSIX_ENTRY_SIZE
        entry = bytes(self._table[at : at + 12])
        delivers = self.enabled and not self._function_masked
        if not delivers or self._table[at + 12] & MSIX_ENTRY_MASKED:
            if self._routed[index] is not None:
                self._vectors[index].mask()
                self._routed[index] = None
            return
        if self._routed[index] != entry:
            address = int.from_bytes(entry[:8], "little")
            try:
                self._vectors[index].route(address, int.from_bytes(entry[8:], "little"))
            except (PykvmError, OSError) as error:
                self._lack = shortage(error)
                if not self._lack:
                    raise
                return
            self._routed[index] = entry
        if self._waiting[index]:
            self._waiting[index] = False
            self.signal(index)

    # -- snapshots -----------------------------------------------------------

    def save(self) -> "Fields":
        """The table, and the interrupts that wait to be unmasked. Nobody raises one meanwhile."""
        with self._lock:
            self._pending(0, self.count)
            return {"table": bytes(self._table), "waiting": bytes(self._waiting)}

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave, when the configuration space has its state.

        SnapshotError. Vectors whose messages stay the same are not routed again.
        """
        table = saved.data("table", len(self._table), len(self._table))
        waiting = saved.data("waiting", self.count, self.count)
        saved.end()
        reserved = int.from_bytes(_RESERVED * self.count, "little")
        if int.from_bytes(table, "little") & reserved or max(waiting) > 1:
            saved.refuse("a vector has reserved bits")
        with self._lock:
            self._forget()
            self._table[:] = table
            self._waiting[:] = [bool(one) for one in waiting]
            self._read_control()
            for index in range(self.count):
                self._update(index)
        self._tell()

    def close(self) -> None:
        """Release the vectors. No interrupt may be raised any more."""
        for vector in self._vectors:
            vector.close()
        self._vectors.clear()
