"""x86 boot: puts a kernel, its initrd and its command line into guest RAM, ready to run."""

from pykvm.x86.cpu import DescriptorTable, EntryState, Segment, SpecialRegisters
from pykvm.x86.loader import LoadedKernel, load_kernel

__all__ = [
    "DescriptorTable",
    "EntryState",
    "LoadedKernel",
    "Segment",
    "SpecialRegisters",
    "load_kernel",
]
