"""CPUID of each vCPU, and the entry state in KVM's structures."""

from types import SimpleNamespace

import pytest

from pykvm.kvm.constants import KVM_CAP_TSC_DEADLINE_TIMER
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.machine.cpu import apply_entry, cpuid_of
from pykvm.machine.create import guest_cpuid
from pykvm.memory import Ram
from pykvm.x86.cpu import long_mode_entry

HTT, HYPERVISOR = 1 << 28, 1 << 31


def leaf(function, index=0, eax=0, ebx=0, ecx=0, edx=0):
    return CpuidEntry(function, index, 1, eax, ebx, ecx, edx)


def only(entries, function, index=0):
    (found,) = [e for e in entries if (e.function, e.index) == (function, index)]
    return found


@pytest.mark.parametrize(("index", "cpus"), [(0, 1), (0, 2), (1, 2), (3, 5), (200, 256)])
def test_leaf_1_has_the_number_of_the_cpu(index, cpus):
    host = leaf(1, eax=0x806F8, ebx=0x07_10_08_00, ecx=0x2001, edx=HTT | 1)
    seen = only(cpuid_of([host], index, cpus), 1)
    assert seen.ebx == index << 24 | min(cpus, 255) << 16 | 0x0800
    assert seen.ecx == 0x2001 | HYPERVISOR
    assert seen.edx == (HTT | 1 if cpus > 1 else 1)
    assert seen.eax == host.eax


@pytest.mark.parametrize("function", [0xB, 0x1F])
@pytest.mark.parametrize("subleaves", [1, 3])
@pytest.mark.parametrize(("index", "cpus", "bits"), [(0, 1, 0), (1, 2, 1), (4, 5, 3), (7, 8, 3)])
def test_the_topology_is_cores_of_one_package(function, subleaves, index, cpus, bits):
    """KVM gives one empty subleaf, or the host's own topology."""
    host = [leaf(function, i, eax=9, ebx=64, ecx=i, edx=77) for i in range(subleaves)]
    seen = cpuid_of(host, index, cpus)
    assert len(seen) == 3
    threads, cores, end = (only(seen, function, i) for i in range(3))
    # ECX: level type (1 thread, 2 core, 0 the end) and the subleaf.
    assert (threads.eax, threads.ebx, threads.ecx) == (0, 1, 0x100)
    assert (cores.eax, cores.ebx, cores.ecx) == (bits, cpus, 0x201)
    assert (end.eax, end.ebx, end.ecx) == (0, 0, 2)
    assert {e.edx for e in seen} == {index}
    # The cores' APIC ids agree in the bits that name the package.
    assert index >> cores.eax == 0


def test_each_cache_belongs_to_one_core():
    host = leaf(4, eax=0xFC00_0000 | 0x3F << 14 | 0x121)
    assert only(cpuid_of([host], 0, 4), 4).eax == 3 << 26 | 0x121
    assert only(cpuid_of([host], 0, 200), 4).eax >> 26 == 63


def test_amd_topology():
    host = [leaf(0x8000_0008, eax=0x3030, ecx=0x7F | 7 << 12), leaf(0x8000_001E, eax=9, ecx=0x300)]
    seen = cpuid_of(host, 2, 3)
    assert only(seen, 0x8000_0008).ecx == 2 | 2 << 12
    assert only(seen, 0x8000_0008).eax == 0x3030
    assert (only(seen, 0x8000_001E).eax, only(seen, 0x8000_001E).ebx) == (2, 2)
    intel = leaf(0x8000_0008, eax=0x3030)
    assert cpuid_of([intel], 1, 2) == [intel]


def test_other_leaves_are_unchanged():
    host = [leaf(0, eax=0x20), leaf(7, 0, ebx=5), leaf(7, 1, eax=3), leaf(0x4000_0000, ebx=1)]
    assert cpuid_of(host, 1, 2) == host


class FakeVcpu:
    """A vCPU that keeps its arguments."""

    def __init__(self, index):
        self.index = index
        self.sregs = None
        self.regs = None

    def set_cpuid2(self, entries):
        self.cpuid = entries

    def set_msrs(self, msrs):
        self.msrs = msrs

    def get_sregs(self):
        names = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt", "gdt", "idt")
        return SimpleNamespace(apic_base=0xFEE0_0900, **{n: SimpleNamespace() for n in names})

    def get_regs(self):
        return SimpleNamespace()

    def set_sregs(self, sregs):
        self.sregs = sregs

    def set_regs(self, regs):
        self.regs = regs


def test_only_the_boot_cpu_gets_the_entry_state():
    entry = long_mode_entry(Ram.flat(1 << 20), 0x123000, 0x7000)
    first, second = FakeVcpu(0), FakeVcpu(1)
    for vcpu in (first, second):
        apply_entry(vcpu, [leaf(1)], 2, entry)
        assert vcpu.msrs == entry.msrs
        assert only(vcpu.cpuid, 1).ebx >> 24 == vcpu.index
    assert first.regs.rip == 0x123000
    assert first.sregs.cs.selector == entry.sregs.cs.selector
    assert first.sregs.gdt.base == entry.sregs.gdt.base
    assert first.sregs.cr3 == entry.sregs.cr3
    assert first.sregs.apic_base == 0xFEE0_0900
    assert second.regs is None
    assert second.sregs is None


@pytest.mark.parametrize("offered", [False, True])
def test_the_guest_sees_the_tsc_deadline_timer_if_kvm_has_it(offered):
    """KVM_GET_SUPPORTED_CPUID never has it."""
    kvm = SimpleNamespace(
        supported_cpuid=lambda: [leaf(0), leaf(1)],
        check_extension=lambda cap: int(offered and cap == KVM_CAP_TSC_DEADLINE_TIMER),
    )
    ecx = {found.function: found.ecx for found in guest_cpuid(kvm)}
    assert ecx == {0: 0, 1: (1 << 24) if offered else 0}
