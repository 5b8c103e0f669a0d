"""Advice to Linux, on its command line and by CPUID, where KVM emulates its kernel code."""

from collections.abc import Iterable

from pykvm.kvm.cpuid import CpuidEntry
from pykvm.lean.records import replace
from pykvm.lean.typing_names import Final

_KVM_CPUID_FEATURES: Final = 0x4000_0001
# KVM_FEATURE_PV_UNHALT, _PV_SEND_IPI, _PV_SCHED_YIELD and _HC_MAP_GPA_RANGE.
_HYPERCALL_FEATURES: Final = 1 << 7 | 1 << 11 | 1 << 13 | 1 << 16

# Features whose instructions the emulator refuses, or that cost more than they gain there.
# CPUID cannot hide them, because the guest sees the processor's own bits in leaves 1 and 7.
# Linux reads at most 127 characters of this list, so the features of its core come first.
_CLEAR_CPUID: Final = (
    297,  # ERMS, FSRM: `rep movsb` costs 0.4 us a byte. `rep movsq` costs the same for eight
    580,  # of them, so REP_GOOD stays: with unrolled loops a page fault takes 20 % longer.
    308,  # SMAP: CLAC and STAC at every user access
    295,  # SMEP
    141,  # CX16: CMPXCHG16B in SLUB
    151,  # POPCNT
    288,  # FSGSBASE: a different path for entering the kernel
    145,  # PCID, INVPCID
    298,
    514,  # UMIP
    517,  # WAITPKG: TPAUSE in delay loops
    131,  # MWAIT in the idle loop
    534,  # RDPID
    150,  # MOVBE, BMI1, BMI2, ADX: code that the kernel's BPF compiler and its ciphers use
    291,
    296,
    307,
    148,  # SSE4.2 and SSSE3: checksums and hashes
    137,
    129,  # PCLMULQDQ, AES, SHA
    153,
    317,
)


def linux_options(tsc_khz: int) -> list[str]:
    """Options that Linux needs to boot on such a host, or to boot in seconds.

    ``tsc_khz`` is the guest's TSC frequency (KVM_GET_TSC_KHZ), 0 if unknown.
    """
    options = [
        "clearcpuid=" + ",".join(map(str, _CLEAR_CPUID)),
        # The emulator refuses XSAVE and its relatives, but not FXSAVE.
        "noxsave",
        # The emulator refuses VERW, and page-table isolation doubles the cost of kernel entries.
        "mitigations=off",
        # Changing the protection of the kernel's own pages walks them all: 0.8 s.
        "rodata=off",
        # The check waits for timer ticks, which come late here.
        "no_timer_check",
        # No hardware random source feeds the pool otherwise, and starting fio waits for it.
        "random.trust_cpu=on",
    ]
    if tsc_khz:
        # Calibrating against the PIT fails when an instruction takes 2 us. With the frequency
        # given, Linux derives loops_per_jiffy from it as well.
        options += ["tsc=reliable", f"tsc_early_khz={tsc_khz}"]
    return options


def without_hypercalls(cpuid: Iterable[CpuidEntry]) -> list[CpuidEntry]:
    """``cpuid`` without the KVM features that make Linux use VMCALL.

    The emulator can hang on VMCALL: a second CPU never came up. The guest sees these
    leaves as pykvm sets them, unlike leaves 1 and 7.
    """
    return [
        replace(leaf, eax=leaf.eax & ~_HYPERCALL_FEATURES)
        if leaf.function == _KVM_CPUID_FEATURES
        else leaf
        for leaf in cpuid
    ]
