"""First register values and CPUID of each vCPU."""

from collections.abc import Sequence
from dataclasses import fields, replace

from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.vcpu import Vcpu
from pykvm.x86.cpu import DescriptorTable, EntryState, Segment

CPUID_1_EBX_CLFLUSH = 0x0000FF00


def apply_entry(vcpu: Vcpu, cpuid: Sequence[CpuidEntry], cpus: int, entry: EntryState) -> None:
    """Set up ``vcpu``: CPUID and MSRs on all, and on the boot CPU (index 0) the entry state."""
    vcpu.set_cpuid2([_for_cpu(leaf, vcpu.index, cpus) for leaf in cpuid])
    vcpu.set_msrs(entry.msrs)
    if vcpu.index != 0:
        # The others wait for the INIT and SIPI that the guest sends them.
        return
    sregs = vcpu.get_sregs()
    for item in fields(entry.sregs):
        value = getattr(entry.sregs, item.name)
        if isinstance(value, Segment | DescriptorTable):
            target = getattr(sregs, item.name)
            for part in fields(value):
                setattr(target, part.name, getattr(value, part.name))
        else:
            setattr(sregs, item.name, value)
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    for name, value in entry.regs.items():
        setattr(regs, name, value)
    vcpu.set_regs(regs)


def _for_cpu(leaf: CpuidEntry, index: int, cpus: int) -> CpuidEntry:
    """KVM describes the host's CPU; say which of the guest's it is (SDM volume 2A, CPUID)."""
    if leaf.function == 1:
        ebx = (leaf.ebx & 0xFFFF) | min(cpus, 255) << 16 | index << 24
        return replace(leaf, ebx=ebx)
    if leaf.function in (0xB, 0x1F):
        # One level only: cores of one package, as many bits of APIC id as they take.
        bits = (cpus - 1).bit_length()
        if leaf.index == 0:
            return replace(leaf, eax=0, ebx=1, ecx=0x100, edx=index)
        if leaf.index == 1:
            return replace(leaf, eax=bits, ebx=cpus, ecx=0x201, edx=index)
        return replace(leaf, eax=0, ebx=0, ecx=leaf.index, edx=index)
    if leaf.function == 4:
        # Cores per package less one in bits 31-26; each cache is one core's.
        return replace(leaf, eax=(leaf.eax & 0x3FFF) | min(cpus - 1, 63) << 26)
    return leaf
