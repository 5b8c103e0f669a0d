"""The memory a VM runs in: anonymous, a memfd or a snapshot, with a hole below 4 GiB.

The hole keeps guest-physical addresses from 3 GiB to 4 GiB free for MMIO (PCI
BARs, I/O APIC, local APIC), as on every PC.
"""

import errno
import mmap
import os
from contextlib import suppress

from pykvm.errors import UsageError, error_text
from pykvm.host.limits import advice
from pykvm.memory.large_pages import LARGE_PAGE, has_large_pages
from pykvm.memory.ram import Ram, Region

MIB = 1 << 20
GIB = 1 << 30

HOLE_START = 3 * GIB
"""First guest-physical address of the MMIO hole."""
HOLE_END = 4 * GIB
"""The address at which RAM continues above the hole."""

MIN_SIZE = 1 * MIB
MAX_SIZE = 256 * GIB
"""With the hole, this fits into the 39 address bits of desktop processors."""

_MAP_NORESERVE = 0x4000  # Python names it from 3.13 on
_MADV_WIPEONFORK = 18  # Linux 4.14


def layout(size: int) -> list[Region]:
    """The regions of ``size`` bytes of RAM: one below the hole, the rest above it."""
    low = min(size, HOLE_START)
    regions = [Region(0, low, 0)]
    if size > low:
        regions.append(Region(HOLE_END, size - low, low))
    return regions


class GuestMemory:
    """Owns the mapping of one VM's RAM.

    ``ram`` is the view for devices and loaders. ``address`` is the host-virtual
    address of its first byte, for KVM_SET_USER_MEMORY_REGION. ``fd`` is the
    memfd of shared memory, which a second process can map, and -1 for
    anonymous memory. ``large_pages``: the host backs RAM with pages of 2 MiB
    where it can. A page of RAM uses memory of the host once the guest or a
    device has touched it.

    Anonymous memory is the default because most hosts give large pages only to
    it (:mod:`pykvm.memory.large_pages`). A forked child sees zeros there.
    Otherwise both processes would copy each page at its first write.
    """

    def __init__(
        self, size: int, *, shared: bool = False, thp: bool = True, file: int = -1
    ) -> None:
        """Map ``size`` bytes, a multiple of 4096; UsageError if that is impossible.

        ``shared``: in a memfd. ``thp``: ask the host for large pages. ``file``: the descriptor
        of a file with at least ``size`` bytes, with which RAM begins. A page is read from it at
        the first access, and writes stay in this process. Nobody may change or shorten the file.
        """
        if size % mmap.PAGESIZE or not MIN_SIZE <= size <= MAX_SIZE:
            raise UsageError(
                f"a guest cannot have {size} bytes of memory",
                f"give -m a multiple of 4096 from {MIN_SIZE >> 20} MiB to {MAX_SIZE >> 30} GiB",
            )
        self.size = size
        self.fd = -1
        try:
            if file >= 0:
                self._map = self._map_file(file)
            else:
                self._map = self._map_shared() if shared else self._map_anonymous()
        except (OSError, ValueError, OverflowError) as error:
            self._close_fd()
            reason, hint = str(error), "give the guest less with -m"
            if isinstance(error, OSError):
                reason = error_text(error.errno or 0)
                if error.errno == errno.ENOMEM and not shared:
                    hint += ", or where vm.overcommit_memory is 2 use -m …,shared=on"
                hint = advice(error.errno or 0, hint)
            raise UsageError(
                f"the host cannot map {size >> 20} MiB of guest memory: {reason}", hint
            ) from None
        self.large_pages = thp and file < 0 and has_large_pages(shared)
        self._from_file = file >= 0
        with memoryview(self._map) as whole:
            # Linux aligns the mapping of a memfd for large pages, if the memfd may have any.
            start = 0 if shared or file >= 0 else -address_of(whole) % LARGE_PAGE
            self.address = address_of(whole) + start
            self.ram = Ram(whole[start : start + size], layout(size))
        advice_given = mmap.MADV_HUGEPAGE if thp else mmap.MADV_NOHUGEPAGE
        with suppress(OSError):  # a kernel without large pages
            self._map.madvise(advice_given, start, size)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions of RAM, with their places in guest-physical space and in the mapping."""
        return self.ram.regions

    @property
    def kind(self) -> str:
        """The backing of RAM, in a few words."""
        if self._from_file:
            return "a private mapping of a snapshot"
        return (
            f"{'anonymous memory' if self.fd < 0 else 'a memfd'}, "
            f"{'large pages where possible' if self.large_pages else '4 KiB pages'}"
        )

    def close(self) -> None:
        """Unmap the memory. If a view of it still exists, the memory is freed with that view.

        A traceback may keep a view, and an error here would hide the error that it tells of.
        """
        with suppress(BufferError):
            self.ram.release()
            self._map.close()
        self._close_fd()

    def _map_anonymous(self) -> mmap.mmap:
        # Large pages need guest-physical and host-virtual addresses with equal lower 21 bits.
        # So the mapping is 2 MiB larger, and RAM begins at a multiple of 2 MiB in it.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        made = mmap.mmap(-1, self.size + LARGE_PAGE, flags)
        made.madvise(_MADV_WIPEONFORK)
        return made

    def _map_file(self, file: int) -> mmap.mmap:
        if os.fstat(file).st_size < self.size:
            raise ValueError("the file is too short")
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        made = mmap.mmap(file, self.size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        made.madvise(mmap.MADV_DONTFORK)
        return made

    def _map_shared(self) -> mmap.mmap:
        self.fd = os.memfd_create("pykvm-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        return mmap.mmap(self.fd, self.size, mmap.MAP_SHARED)

    def _close_fd(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def address_of(view: memoryview) -> int:
    """The host-virtual address of the first byte of ``view``.

    It is valid as long as the buffer exists. No view of the buffer is kept.
    """
    # The compiled core of cffi, because `cffi` imports a C parser, which takes 25 ms.
    from _cffi_backend import FFI

    ffi = FFI()
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
