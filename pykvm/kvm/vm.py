"""One VM: memory, interrupt controllers, eventfds and vCPUs."""

import mmap
from collections.abc import Iterable, Sequence
from errno import EINVAL

from pykvm.kvm import constants as c
from pykvm.kvm.descriptor import Descriptor
from pykvm.kvm.errors import KvmError, MissingCapability
from pykvm.kvm.native import ffi
from pykvm.kvm.routing import IrqchipRoute, Route
from pykvm.kvm.vcpu import Vcpu

_SPARE_SLOT = 31
_SPARE_PAGE = 0xFFFB_B000
"""A slot and an address without RAM or devices, below the pages of create.KVM_IDENTITY_MAP."""


class Vm(Descriptor):
    """Owns a VM's descriptor. The caller of :meth:`create_vcpu` owns the vCPU.

    The kernel keeps the VM alive until the VM and all vCPUs are closed. Any
    thread may call any method, also while vCPUs run.
    """

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size

    def check_extension(self, cap: int) -> int:
        """The result of KVM_CHECK_EXTENSION for ``cap`` and this VM; 0 if it is absent."""
        return self._ioctl("KVM_CHECK_EXTENSION", c.KVM_CHECK_EXTENSION, cap)

    def require(self, *caps: int) -> None:
        """MissingCapability, which names all absent ones, unless KVM has all ``caps``."""
        missing = [cap for cap in caps if self.check_extension(cap) <= 0]
        if missing:
            raise MissingCapability(missing)

    def create_irqchip(self) -> None:
        """Create two PICs, an I/O APIC, and a local APIC for each vCPU that is created later."""
        self._ioctl("KVM_CREATE_IRQCHIP", c.KVM_CREATE_IRQCHIP)

    def create_pit2(self) -> None:
        """Create an i8254 timer on GSI 0, which also answers port 0x61; needs the irqchip."""
        config = ffi.new("struct kvm_pit_config *")
        config.flags = c.KVM_PIT_SPEAKER_DUMMY
        self._ioctl("KVM_CREATE_PIT2", c.KVM_CREATE_PIT2, config)

    def set_tss_address(self, address: int) -> None:
        """Tell KVM the guest-physical address of three free pages below 4 GiB, which VMX needs."""
        self._ioctl("KVM_SET_TSS_ADDR", c.KVM_SET_TSS_ADDR, address)

    def set_identity_map_address(self, address: int) -> None:
        """Tell KVM the guest-physical address of a free page below 4 GiB, before the first vCPU."""
        argument = ffi.new("uint64_t *", address)
        self._ioctl("KVM_SET_IDENTITY_MAP_ADDR", c.KVM_SET_IDENTITY_MAP_ADDR, argument)

    def set_memory(self, slot: int, guest_address: int, size: int, host_address: int) -> None:
        """Show ``size`` bytes at ``host_address`` to the guest at ``guest_address``.

        All three are multiples of 4096. The host memory must stay mapped until
        the VM is gone.
        """
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot = slot
        region.guest_phys_addr = guest_address
        region.memory_size = size
        region.userspace_addr = host_address
        self._ioctl("KVM_SET_USER_MEMORY_REGION", c.KVM_SET_USER_MEMORY_REGION, region)

    def forget_translations(self, host_address: int) -> None:
        """Drop all that KVM and the processor have derived from the guest's page tables.

        For page tables that were changed from outside while no vCPU runs. KVM follows only the
        guest's own writes to them, where it shadows page tables; elsewhere the processor may have
        cached translations. The removal of any memory slot drops both. ``host_address`` is that of
        a mapped page. It takes up to some milliseconds, because KVM waits for a grace period.
        """
        self.set_memory(_SPARE_SLOT, _SPARE_PAGE, mmap.PAGESIZE, host_address)
        self.set_memory(_SPARE_SLOT, _SPARE_PAGE, 0, host_address)

    def create_vcpu(self, index: int) -> Vcpu:
        """Create vCPU ``index``, which is also its APIC id; KvmError. The caller closes it."""
        limit = self.check_extension(c.KVM_CAP_MAX_VCPUS)
        if limit and index >= limit:
            message = f"KVM runs at most {limit} vCPUs in one VM here"
            raise KvmError("KVM_CREATE_VCPU", EINVAL, message, "give the guest fewer with --cpus")
        fd = self._ioctl("KVM_CREATE_VCPU", c.KVM_CREATE_VCPU, index)
        sync = self.check_extension(c.KVM_CAP_SYNC_REGS)
        return Vcpu(fd, index, self._vcpu_mmap_size, sync)

    def irq_line(self, gsi: int, level: bool) -> None:
        """Drive interrupt line ``gsi``. For an edge interrupt, drive it high, then low."""
        argument = ffi.new("struct kvm_irq_level *", [gsi, level])
        self._ioctl("KVM_IRQ_LINE", c.KVM_IRQ_LINE, argument)

    def irqfd(self, eventfd: int, gsi: int, assign: bool = True) -> None:
        """Raise ``gsi`` whenever ``eventfd`` is written; with ``assign`` false, stop that.

        Assigning raises signals that are in the eventfd already. Once deassigning
        has returned, the eventfd raises no more interrupts.
        """
        argument = ffi.new("struct kvm_irqfd *")
        argument.fd = eventfd
        argument.gsi = gsi
        argument.flags = 0 if assign else c.KVM_IRQFD_FLAG_DEASSIGN
        self._ioctl("KVM_IRQFD", c.KVM_IRQFD, argument)

    def ioeventfd(self, eventfd: int, address: int, length: int, *, assign: bool = True) -> None:
        """Signal ``eventfd`` on guest writes of ``length`` bytes to ``address``, without an exit.

        ``address`` is guest-physical; ``length`` 0 matches every width. ``assign``
        false, with the same arguments, undoes it.
        """
        argument = ffi.new("struct kvm_ioeventfd *")
        argument.fd = eventfd
        argument.addr = address
        argument.len = length
        argument.flags = 0 if assign else c.KVM_IOEVENTFD_FLAG_DEASSIGN
        self._ioctl("KVM_IOEVENTFD", c.KVM_IOEVENTFD, argument)

    def set_gsi_routing(self, routes: Sequence[Route]) -> None:
        """Replace the whole routing table. GSIs that are not in ``routes`` have no route."""
        table = ffi.new("struct kvm_irq_routing *", {"entries": len(routes)})
        table.nr = len(routes)
        for entry, route in zip(table.entries[0 : len(routes)], routes, strict=True):
            entry.gsi = route.gsi
            if isinstance(route, IrqchipRoute):
                entry.type = c.KVM_IRQ_ROUTING_IRQCHIP
                entry.u.irqchip.irqchip = route.irqchip
                entry.u.irqchip.pin = route.pin
            else:
                entry.type = c.KVM_IRQ_ROUTING_MSI
                entry.u.msi.address_lo = route.address & 0xFFFFFFFF
                entry.u.msi.address_hi = route.address >> 32
                entry.u.msi.data = route.data
        self._ioctl("KVM_SET_GSI_ROUTING", c.KVM_SET_GSI_ROUTING, table)

    def enable_cap(self, cap: int, *args: int) -> None:
        """Switch on KVM_CAP_* ``cap`` with up to four arguments; MissingCapability."""
        self.require(cap)
        argument = ffi.new("struct kvm_enable_cap *")
        argument.cap = cap
        for number, value in enumerate(args):
            argument.args[number] = value
        self._ioctl("KVM_ENABLE_CAP", c.KVM_ENABLE_CAP, argument)

    def set_msr_filter(
        self,
        *,
        deny_writes: Iterable[tuple[int, int]] = (),
        deny_reads: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Make accesses to ranges of MSRs (first index, count) MsrWrite and MsrRead exits.

        Other MSRs are not affected. Without ranges, the filter ends. At most 16
        ranges of at most 12288 MSRs. MissingCapability if KVM has no filters.
        """
        ranges = [(c.KVM_MSR_FILTER_WRITE, *r) for r in deny_writes]
        ranges += [(c.KVM_MSR_FILTER_READ, *r) for r in deny_reads]
        if len(ranges) > c.KVM_MSR_FILTER_MAX_RANGES:
            raise ValueError(f"KVM filters at most 16 ranges of MSRs, not {len(ranges)}")
        self.require(c.KVM_CAP_X86_MSR_FILTER)
        reason = c.KVM_MSR_EXIT_REASON_FILTER if ranges else 0
        self.enable_cap(c.KVM_CAP_X86_USER_SPACE_MSR, reason)
        msr_filter = ffi.new("struct kvm_msr_filter *")
        bitmaps = []  # the structure only points to them
        for place, (flags, first, count) in zip(msr_filter.ranges, ranges, strict=False):
            if not 0 < count <= 8 * c.KVM_MSR_FILTER_MAX_BITMAP_SIZE:
                raise ValueError(f"KVM cannot filter a range of {count} MSRs")
            # Whole 64-bit words of zeros: a clear bit denies.
            bitmaps.append(ffi.new("uint8_t[]", (count + 63) // 64 * 8))
            place.flags, place.base, place.nmsrs = flags, first, count
            place.bitmap = bitmaps[-1]
        self._ioctl("KVM_X86_SET_MSR_FILTER", c.KVM_X86_SET_MSR_FILTER, msr_filter)
