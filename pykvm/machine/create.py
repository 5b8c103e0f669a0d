"""Creates the VM that a configuration describes, within the limits of this host."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import MappingProxyType

from pykvm.errors import UsageError
from pykvm.host.threads import cpu_list, usable_cpus
from pykvm.kvm import constants as c
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.probe_cache import host_traits
from pykvm.kvm.system import Kvm
from pykvm.kvm.vm import Vm
from pykvm.lean.records import replace
from pykvm.lean.typing_names import TYPE_CHECKING, Final
from pykvm.machine.config import MachineConfig
from pykvm.machine.cpu import apply_entry
from pykvm.machine.guest import EMULATED, NATIVE, resolve
from pykvm.memory import GuestMemory, Ram, Region
from pykvm.memory.guest import HOLE_END
from pykvm.pci.host import MAX_DEVICES
from pykvm.x86.loader import load_kernel
from pykvm.x86.mptable import MAX_CPUS

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.kvm.assist import Assist
    from pykvm.machine.snapshot import MachineSnapshot

KVM_IDENTITY_MAP = 0xFFFB_C000
"""The page that VMX needs, followed by three for the TSS, at addresses without RAM or devices."""
KVM_TSS = KVM_IDENTITY_MAP + 0x1000

_TSC_DEADLINE = 1 << 24

NEEDED: Final = MappingProxyType(
    {
        c.KVM_CAP_USER_MEMORY: "a guest has no memory",
        c.KVM_CAP_SET_TSS_ADDR: "no vCPU starts on Intel processors",
        c.KVM_CAP_SET_IDENTITY_MAP_ADDR: "no vCPU starts on older Intel processors",
        c.KVM_CAP_EXT_CPUID: "a guest sees no processor features",
        c.KVM_CAP_IRQCHIP: "there are no interrupt controllers",
        c.KVM_CAP_PIT2: "Linux has no timer to begin with",
        c.KVM_CAP_IRQ_ROUTING: "devices have no MSI",
        c.KVM_CAP_IRQFD: "devices cannot interrupt the guest",
        c.KVM_CAP_IOEVENTFD: "the guest cannot notify devices",
        c.KVM_CAP_IOEVENTFD_ANY_LENGTH: "the guest cannot notify devices",
        c.KVM_CAP_IMMEDIATE_EXIT: "a running vCPU cannot be stopped",
    }
)
"""The capabilities of KVM that every machine needs, and what fails without each."""

MAX_DISKS = MAX_DEVICES - 2
"""The host bridge and pvpanic take two of the bus's devices."""
MAX_QUEUES = 960
"""The most queues of all disks together. Each takes an ioeventfd, and Linux allows 1000 for a VM,
with those of its own chips."""


class Hardware:
    """The VM as KVM knows it: ``vm``, its ``memory`` and its ``vcpus``.

    ``traits`` are the host's. ``guest`` is the guest that :meth:`load` loads. ``assist`` is the
    helper for hosts without hardware virtualization; on other hosts it is None and not imported.
    """

    def __init__(
        self,
        stack: ExitStack,
        config: MachineConfig,
        mark: Callable[[str], None],
        saved: "MachineSnapshot | None" = None,
    ) -> None:
        """Create the VM; ``stack`` closes it. ``mark`` notes the time of a step.

        With ``saved``, memory begins as the saved one. Then call :meth:`MachineSnapshot.load`
        instead of :meth:`load`. UsageError and HostError tell why that is impossible.
        """
        self.kvm = kvm = stack.enter_context(Kvm.open())
        self.traits: HostTraits = host_traits(kvm)
        mark("host probed")
        self.cpus = config.cpus
        self._cpuid: list[CpuidEntry] = []
        self._hashes: dict[str, bytes] = {}
        self.guest = guest = resolve(config, EMULATED if self.traits.needs_assists else NATIVE)
        check_limits(kvm, config)
        if saved is not None and config.shared_memory:
            raise UsageError(
                "the memory of a restored machine cannot be shared", "leave out shared=on"
            )
        if saved is None:
            self.memory = GuestMemory(guest.memory, shared=config.shared_memory, thp=config.thp)
        else:
            self.memory = saved.map_memory(self)
        stack.callback(self.memory.close)
        self.vm = stack.enter_context(create_vm(kvm, self.memory))
        self.assist = _assist(self.traits, self.vm, self.memory.ram)
        add_chips(self.vm)
        self.vcpus = [stack.enter_context(self.vm.create_vcpu(i)) for i in range(config.cpus)]

    @property
    def cpuid(self) -> list[CpuidEntry]:
        """The CPUID leaves of the guest, before each vCPU's own numbers are put in."""
        if not self._cpuid:
            leaves = guest_cpuid(self.kvm)
            self._cpuid = self.assist.cpuid(leaves) if self.assist else leaves
        return self._cpuid

    @property
    def guest_hash(self) -> bytes:
        """See :func:`pykvm.machine.identity.guest_hash`; UsageError."""
        if "guest" not in self._hashes:
            from pykvm.machine.identity import guest_hash  # for snapshots only

            self._hashes["guest"] = guest_hash(self.guest, self.cpus)
        return self._hashes["guest"]

    @property
    def cpuid_hash(self) -> bytes:
        """See :func:`pykvm.machine.identity.cpuid_hash`."""
        if "cpuid" not in self._hashes:
            from pykvm.machine.identity import cpuid_hash

            self._hashes["cpuid"] = cpuid_hash(self.cpuid, self.cpus)
        return self._hashes["cpuid"]

    def load(self, mark: Callable[[str], None]) -> tuple[str, str]:
        """Load the guest's kernel, and set each vCPU to its start.

        Returns a description of the kernel, and a notice for the user of this host, or "".
        """
        guest, assist = self.guest, self.assist
        host_options = assist.command_line(self.vcpus[0].tsc_khz()) if assist else []
        loaded = load_kernel(
            self.memory.ram,
            guest.kernel,
            initrd=guest.initrd,
            command_line=lambda kind: guest.command_line(kind, host_options),
            cpus=len(self.vcpus),
            reserved=guest.reserved,
        )
        mark("kernel loaded")
        cpuid = self.cpuid
        for vcpu in self.vcpus:
            apply_entry(vcpu, cpuid, len(self.vcpus), loaded.entry)
            if assist:
                assist.prepare(vcpu)
        return loaded.description, guest.emulation_notice(loaded.kind) if assist else ""


def open_snapshot(
    stack: ExitStack, snapshot: "MachineSnapshot | Path | str | None"
) -> "MachineSnapshot | None":
    """``snapshot``, or the one in the folder of that name, which ``stack`` then closes."""
    if snapshot is None:
        return None
    from pykvm.machine.snapshot import MachineSnapshot

    if isinstance(snapshot, MachineSnapshot):
        return snapshot
    return stack.enter_context(MachineSnapshot.open(snapshot))


def _assist(traits: HostTraits, vm: Vm, ram: Ram) -> "Assist | None":
    if not traits.needs_assists:
        return None
    from pykvm.kvm.assist import Assist

    return Assist(traits, vm, ram)


def check_limits(kvm: Kvm, config: MachineConfig) -> None:
    """UsageError if ``config`` exceeds a limit, or names a host's CPU that pykvm cannot use."""
    cpus = min(kvm.check_extension(c.KVM_CAP_MAX_VCPUS), MAX_CPUS)
    if not 1 <= config.cpus <= cpus:
        raise UsageError(
            f"a guest cannot have {config.cpus} CPUs on this host", f"give --cpus from 1 to {cpus}"
        )
    _check_affinity(config.cpu_affinity)
    check_disks(config.disks)


def check_disks(disks: "Sequence[DiskConfig]") -> None:
    """UsageError if one machine cannot have all of ``disks``."""
    if len(disks) > MAX_DISKS:
        raise UsageError(
            f"a guest cannot have {len(disks)} disks", f"give --disk at most {MAX_DISKS} times"
        )
    queues = sum(disk.num_queues for disk in disks)
    if queues > MAX_QUEUES:
        raise UsageError(
            f"a guest's disks cannot have {queues} queues together", f"use at most {MAX_QUEUES}"
        )
    _check_affinity(frozenset().union(*(disk.cpu_affinity for disk in disks)))


def _check_affinity(wanted: frozenset[int]) -> None:
    if wanted and not wanted <= (usable := usable_cpus()):
        raise UsageError(
            f"no thread of pykvm can run on CPU {min(wanted - usable)} of this host",
            f"choose among {cpu_list(usable)}",
        )


def create_vm(kvm: Kvm, memory: GuestMemory) -> Vm:
    """A VM with ``memory``, without chips or vCPUs; MissingCapability."""
    vm = kvm.create_vm()
    try:
        vm.require(*NEEDED)
        for slot, region in enumerate(memory.regions):
            vm.set_memory(slot, region.start, region.size, memory.address + region.offset)
        vm.set_identity_map_address(KVM_IDENTITY_MAP)
        vm.set_tss_address(KVM_TSS)
    except BaseException:
        vm.close()
        raise
    return vm


def add_chips(vm: Vm) -> None:
    """Give ``vm`` KVM's interrupt controllers and timer.

    To be called after memory and MSR filters are set: once a VM has chips,
    KVM takes 4 to 16 ms for each change of these (an SRCU grace period). To be
    called before vCPUs are created, because each vCPU then gets a local APIC.
    """
    vm.create_irqchip()
    vm.create_pit2()


def guest_cpuid(kvm: Kvm) -> list[CpuidEntry]:
    """The CPUID of a guest on this host: all features that KVM supports.

    KVM_GET_SUPPORTED_CPUID omits the TSC-deadline timer, because that needs
    KVM's local APIC. Every machine has one (Documentation/virt/kvm/api.rst).
    """
    deadline = _TSC_DEADLINE if kvm.check_extension(c.KVM_CAP_TSC_DEADLINE_TIMER) else 0
    return [
        replace(leaf, ecx=leaf.ecx | deadline) if leaf.function == 1 else leaf
        for leaf in kvm.supported_cpuid()
    ]


def memory_sizes(regions: Sequence[Region]) -> tuple[int, int]:
    """Bytes of RAM below and above 4 GiB."""
    low = sum(region.size for region in regions if region.start < HOLE_END)
    return low, sum(region.size for region in regions) - low
