"""The memory a VM runs in: anonymous, a memfd or frozen memory, with a hole below 4 GiB.

The hole keeps guest-physical addresses from 3 GiB to 4 GiB free for MMIO (PCI
BARs, I/O APIC, local APIC), as on every PC.
"""

import errno
import mmap
import os
from contextlib import suppress

from pykvm.errors import UsageError, error_text
from pykvm.host.limits import advice
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.memory.large_pages import LARGE_PAGE, has_large_pages
from pykvm.memory.ram import Ram, Region

if TYPE_CHECKING:
    from pykvm.memory.frozen import Copy, FrozenMemory

MIB = 1 << 20
GIB = 1 << 30

HOLE_START = 3 * GIB
"""First guest-physical address of the MMIO hole."""
HOLE_END = 4 * GIB
"""The address at which RAM continues above the hole."""

MIN_SIZE = 1 * MIB
MAX_SIZE = 256 * GIB
"""With the hole, this fits into the 39 address bits of desktop processors."""

COPY_BACK = 8 * MIB
"""Bytes of changed pages that a reset copies back. More are dropped: that is slower afterwards,
because each page takes a fault again, but frees memory."""

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000  # Python names it from 3.13 on
_MADV_WIPEONFORK = 18  # Linux 4.14
_NR_MMAP, _NR_MADVISE = 9, 28


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
    other memory. ``large_pages``: the host backs RAM with pages of 2 MiB
    where it can. A page of RAM uses memory of the host once the guest or a
    device has touched it.

    Anonymous memory is the default because most hosts give large pages only to
    it (:mod:`pykvm.memory.large_pages`). A forked child sees zeros there.
    Otherwise both processes would copy each page at its first write.
    """

    def __init__(
        self,
        size: int,
        *,
        shared: bool = False,
        thp: bool = True,
        origin: "FrozenMemory | None" = None,
    ) -> None:
        """Map ``size`` bytes, a multiple of 4096; UsageError if that is impossible.

        ``shared``: in a memfd. ``thp``: ask the host for large pages. ``origin``: the memory
        with which RAM begins. A page is read from it at the first access, and writes stay in
        this mapping.
        """
        if size % mmap.PAGESIZE or not MIN_SIZE <= size <= MAX_SIZE:
            raise UsageError(
                f"a guest cannot have {size} bytes of memory",
                f"give -m a multiple of 4096 from {MIN_SIZE >> 20} MiB to {MAX_SIZE >> 30} GiB",
            )
        self.size = size
        self.fd = -1
        self._shared = shared
        self._was_private = False
        self.origin: FrozenMemory | None = None
        """The frozen memory that RAM is a private mapping of."""
        try:
            self._map = self._map_shared() if shared else self._map_anonymous(origin is None)
            with memoryview(self._map) as whole:
                # Linux aligns the mapping of a memfd for large pages, if the memfd may have any.
                start = 0 if shared else -address_of(whole) % LARGE_PAGE
                self.address = address_of(whole) + start
                self.ram = Ram(whole[start : start + size], layout(size))
            if origin is not None:
                self._map_frozen(origin.duplicate())
        except (OSError, ValueError, OverflowError) as error:
            self.close()
            reason, hint = str(error), "give the guest less with -m"
            if isinstance(error, OSError):
                reason = error_text(error.errno or 0)
                if error.errno == errno.ENOMEM and not shared:
                    hint += ", or where vm.overcommit_memory is 2 use -m …,shared=on"
                hint = advice(error.errno or 0, hint)
            raise UsageError(
                f"the host cannot map {size >> 20} MiB of guest memory: {reason}", hint
            ) from None
        self.large_pages = thp and origin is None and has_large_pages(shared)
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
        if self.origin is not None or self._was_private:
            return "a private mapping of a snapshot"
        return (
            f"{'a memfd' if self._shared else 'anonymous memory'}, "
            f"{'large pages where possible' if self.large_pages else '4 KiB pages'}"
        )

    def close(self) -> None:
        """Unmap the memory. If a view of it still exists, the memory is freed with that view.

        A traceback may keep a view, and an error here would hide the error that it tells of.
        """
        if hasattr(self, "ram"):
            with suppress(BufferError):
                self.ram.release()
                self._map.close()
        if self.origin is not None:
            self.origin.close()
            self.origin = None
            self._was_private = True
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # -- snapshots: the owner serialises these calls. Not for shared memory ------

    def begin_copy(self) -> "Copy":
        """Prepare for :meth:`freeze`, while the guest runs; OSError.

        The caller closes the copy, when the guest may run again.
        """
        from pykvm.memory.changed import changed_ranges
        from pykvm.memory.frozen import Copy

        copy = Copy(self.size, self.origin)
        try:
            copy.take(self.ram.bytes, changed_ranges(self.address, self.size))
        except BaseException:
            copy.close()
            raise
        return copy

    def freeze(self, copy: "Copy") -> "FrozenMemory":
        """The present content, frozen. RAM goes on as a private mapping of it. OSError.

        The guest is stopped: nobody writes RAM meanwhile. ``copy`` is from :meth:`begin_copy`.
        """
        from pykvm.memory.changed import changed_ranges

        assert self.fd < 0, "private memory"
        copy.take_again(self.ram.bytes, changed_ranges(self.address, self.size))
        frozen = copy.freeze()
        try:
            self._map_frozen(frozen.duplicate())
        except BaseException:
            frozen.close()
            raise
        return frozen

    def put_back(self, frozen: "FrozenMemory") -> None:
        """Give RAM the content of ``frozen``, of the same size. The guest is stopped. OSError."""
        assert frozen.size == self.size
        assert self.fd < 0, "private memory"
        if self.origin is None or not self.origin.is_same(frozen):
            self._map_frozen(frozen.duplicate())
            return
        from pykvm.memory.changed import changed_ranges

        changed = changed_ranges(self.address, self.size)
        if sum(end - start for start, end in changed) > COPY_BACK:
            self._map_over(frozen.fd)
            return
        ram = self.ram.bytes
        with self.origin.bytes as content:
            for start, end in changed:
                ram[start:end] = content[start:end]

    def _map_frozen(self, origin: "FrozenMemory") -> None:
        """Become a private mapping of ``origin``, which this object owns from now on."""
        try:
            self._map_over(origin.fd)
        except BaseException:
            origin.close()
            raise
        if self.origin is not None:
            self.origin.close()
        self.origin = origin

    def _map_over(self, fd: int) -> None:
        """Map ``fd`` privately over the present memory. The address stays, so KVM follows."""
        from pykvm.host.libc import system_call

        protection, flags = (
            mmap.PROT_READ | mmap.PROT_WRITE,
            _MAP_FIXED | _MAP_NORESERVE | mmap.MAP_PRIVATE,
        )
        system_call(_NR_MMAP, self.address, self.size, protection, flags, fd, 0)
        system_call(_NR_MADVISE, self.address, self.size, mmap.MADV_DONTFORK)

    # -- mappings ---------------------------------------------------------------

    def _map_anonymous(self, stays: bool) -> mmap.mmap:
        # Large pages need guest-physical and host-virtual addresses with equal lower 21 bits.
        # So the mapping is 2 MiB larger, and RAM begins at a multiple of 2 MiB in it.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        made = mmap.mmap(-1, self.size + LARGE_PAGE, flags)
        if stays:
            made.madvise(_MADV_WIPEONFORK)
        return made

    def _map_shared(self) -> mmap.mmap:
        from pykvm.memory.frozen import new_memory

        self.fd = new_memory("pykvm-ram", self.size)
        return mmap.mmap(self.fd, self.size, mmap.MAP_SHARED)


def address_of(view: memoryview) -> int:
    """The host-virtual address of the first byte of ``view``.

    It is valid as long as the buffer exists. No view of the buffer is kept.
    """
    # The compiled core of cffi, because `cffi` imports a C parser, which takes 25 ms.
    from _cffi_backend import FFI

    ffi = FFI()
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
