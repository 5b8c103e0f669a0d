"""CPUID leaves as values."""

from pykvm.lean.records import record
from pykvm.lean.typing_names import Any


@record
class CpuidEntry:
    """One CPUID leaf (``function``) and subleaf (``index``).

    The subleaf matters only if ``flags`` has KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
    """

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int

    @classmethod
    def from_table(cls, table: Any) -> "list[CpuidEntry]":
        """The entries of a struct kvm_cpuid2."""
        return [
            cls(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
            for e in table.entries[0 : table.nent]
        ]
