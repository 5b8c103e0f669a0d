"""First register values and CPUID of each vCPU."""

from collections.abc import Iterable, Sequence

from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.vcpu import Vcpu
from pykvm.lean.records import replace
from pykvm.x86.cpu import DescriptorTable, EntryState, Segment

_HTT = 1 << 28
_HYPERVISOR = 1 << 31
_TOPOLOGY = (0xB, 0x1F)


def apply_entry(vcpu: Vcpu, cpuid: Sequence[CpuidEntry], cpus: int, entry: EntryState) -> None:
    """Set up ``vcpu``: CPUID and MSRs on all, and on the boot CPU (index 0) the entry state."""
    vcpu.set_cpuid2(cpuid_of(cpuid, vcpu.index, cpus))
    vcpu.set_msrs(entry.msrs)
    if vcpu.index != 0:
        # All other CPUs wait for INIT and SIPI from the guest.
        return
    sregs = vcpu.get_sregs()
    for name, value in vars(entry.sregs).items():
        if isinstance(value, Segment | DescriptorTable):
            target = getattr(sregs, name)
            for part, bits in vars(value).items():
                setattr(target, part, bits)
        else:
            setattr(sregs, name, value)
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    for name, value in entry.regs.items():
        setattr(regs, name, value)
    vcpu.set_regs(regs)


def cpuid_of(cpuid: Iterable[CpuidEntry], index: int, cpus: int) -> list[CpuidEntry]:
    """The CPUID of CPU ``index`` in a guest with ``cpus`` CPUs, from KVM's ``cpuid``.

    The CPUs are cores of one package, with one thread each and APIC ids from
    0 up (SDM volume 2A, CPUID; AMD APM volume 3, appendix E).
    """
    entries: list[CpuidEntry] = []
    for leaf in cpuid:
        if leaf.function not in _TOPOLOGY:
            entries.append(_leaf_of(leaf, index, cpus))
        elif leaf.index == 0:
            entries += _topology(leaf, index, cpus)
    return entries


def _leaf_of(leaf: CpuidEntry, index: int, cpus: int) -> CpuidEntry:
    match leaf.function:
        case 1:
            return replace(
                leaf,
                ebx=(leaf.ebx & 0xFFFF) | min(cpus, 255) << 16 | (index & 0xFF) << 24,
                # KVM does not set this bit, and without it Linux does not look for kvm-clock.
                ecx=leaf.ecx | _HYPERVISOR,
                edx=leaf.edx | _HTT if cpus > 1 else leaf.edx & ~_HTT,
            )
        case 4:
            # Bits 31-26 are the cores per package less one. No cores share a cache.
            return replace(leaf, eax=(leaf.eax & 0x3FFF) | min(cpus - 1, 63) << 26)
        case 0x8000_0008 if leaf.ecx:  # 0 is Intel's
            bits = (cpus - 1).bit_length()
            return replace(leaf, ecx=(leaf.ecx & ~0xF0FF) | min(cpus - 1, 255) | bits << 12)
        case 0x8000_001E:
            return replace(leaf, eax=index, ebx=index & 0xFF, ecx=0)
    return leaf


def _topology(leaf: CpuidEntry, index: int, cpus: int) -> list[CpuidEntry]:
    """The subleaves of leaf 0xB or 0x1F: threads, cores, end. KVM gives one empty subleaf."""
    bits = (cpus - 1).bit_length()
    return [
        replace(leaf, index=0, eax=0, ebx=1, ecx=0x100, edx=index),
        replace(leaf, index=1, eax=bits, ebx=cpus, ecx=0x201, edx=index),
        replace(leaf, index=2, eax=0, ebx=0, ecx=0x002, edx=index),
    ]
