"""The memory a VM runs in: a memfd, mapped shared, with a hole below 4 GiB.

A memfd rather than anonymous memory, so that another process can map the
same RAM later. The hole keeps guest-physical addresses from 3 GiB to 4 GiB
free for MMIO (PCI BARs, I/O APIC, local APIC), as on every PC.
"""

import mmap
import os
from contextlib import suppress

from pykvm.errors import UsageError
from pykvm.limits import advice
from pykvm.memory.ram import Ram, Region

MIB = 1 << 20
GIB = 1 << 30

HOLE_START = 3 * GIB
"""First guest-physical address of the MMIO hole."""
HOLE_END = 4 * GIB
"""Where RAM goes on above the hole."""

MIN_SIZE = 1 * MIB
MAX_SIZE = 256 * GIB
"""With the hole, less than the 39 bits of physical address that desktop processors have."""


def layout(size: int) -> list[Region]:
    """The regions of ``size`` bytes of RAM: one below the hole, the rest above it."""
    low = min(size, HOLE_START)
    regions = [Region(0, low, 0)]
    if size > low:
        regions.append(Region(HOLE_END, size - low, low))
    return regions


class GuestMemory:
    """Owns the memfd and the mapping of one VM's RAM.

    ``ram`` is the view that everything else works on, ``fd`` the memfd, and
    ``address`` the host-virtual address of the mapping's first byte, for
    KVM_SET_USER_MEMORY_REGION.
    """

    def __init__(self, size: int) -> None:
        """Map ``size`` bytes (a multiple of 4096); UsageError if that cannot be."""
        if size % mmap.PAGESIZE or not MIN_SIZE <= size <= MAX_SIZE:
            raise UsageError(
                f"a guest cannot have {size} bytes of memory",
                f"give -m a multiple of 4096 from {MIN_SIZE >> 20} MiB to {MAX_SIZE >> 30} GiB",
            )
        self.size = size
        self.fd = os.memfd_create("pykvm-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        except (OSError, ValueError, OverflowError) as error:
            os.close(self.fd)
            reason, hint = str(error), "give the guest less with -m"
            if isinstance(error, OSError):
                reason = os.strerror(error.errno or 0).lower()
                hint = advice(error.errno or 0, hint)
            raise UsageError(
                f"the host cannot map {size >> 20} MiB of guest memory: {reason}", hint
            ) from None
        self.ram = Ram(memoryview(self._map), layout(size))
        with memoryview(self._map) as view:
            self.address = address_of(view)

    @property
    def regions(self) -> tuple[Region, ...]:
        """Where RAM lies in guest-physical space and in the mapping."""
        return self.ram.regions

    def close(self) -> None:
        """Unmap and free the memory, or leave that to the last view of it that somebody keeps.

        A traceback may keep one; that is no reason to hide what it tells of.
        """
        with suppress(BufferError):
            self.ram.release()
            self._map.close()
        os.close(self.fd)


def address_of(view: memoryview) -> int:
    """The host-virtual address of the first byte of ``view``, whatever is behind it.

    Holds for as long as the buffer exists. Keeps no view of it.
    """
    # cffi's compiled core rather than `cffi` itself, whose C parser takes 25 ms to import.
    from _cffi_backend import FFI

    ffi = FFI()
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
