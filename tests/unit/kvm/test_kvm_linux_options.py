"""Options and CPUID for Linux on a host that emulates kernel code."""

from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.linux_options import linux_options, without_hypercalls


def test_linux_reads_the_whole_list_of_features():
    option = linux_options(2_600_000)[0]
    name, _, value = option.partition("=")
    # Linux 6.1 arch/x86/kernel/fpu/init.c reads it into 128 bytes.
    assert name == "clearcpuid"
    assert len(value) < 128
    assert len(set(value.split(","))) == len(value.split(","))


def test_linux_is_not_told_an_unknown_frequency():
    assert not any(option.startswith("tsc") for option in linux_options(0))
    assert "tsc_early_khz=2600000" in linux_options(2_600_000)


def test_only_hypercalls_are_hidden():
    features = CpuidEntry(0x4000_0001, 0, 0, eax=0xFFFF_FFFF, ebx=0, ecx=0, edx=0xFFFF_FFFF)
    other = CpuidEntry(1, 0, 0, eax=0xFFFF_FFFF, ebx=0, ecx=0, edx=0)
    hidden, same = without_hypercalls([features, other])
    assert same == other
    # PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD, HC_MAP_GPA_RANGE
    assert hidden.eax == 0xFFFF_FFFF & ~0x1_2880
    assert hidden.edx == features.edx
