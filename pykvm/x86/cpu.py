"""The first state of a vCPU, and the tables in RAM to which this state refers.

These are plain values, which the machine copies into KVM's structures. Their names are
those of ``struct kvm_regs``, ``kvm_sregs`` and ``kvm_segment``.
"""

import struct
from array import array
from collections.abc import Mapping

from pykvm.lean.records import record
from pykvm.memory import Ram
from pykvm.x86 import layout

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
RFLAGS_RESERVED_ONE = 1 << 1

MSR_IA32_MISC_ENABLE = 0x1A0
MISC_ENABLE_FAST_STRING = 1 << 0
MSR_MTRR_DEF_TYPE = 0x2FF
MTRR_ENABLE = 1 << 11
MTRR_WRITE_BACK = 6

BOOT_CS = 0x10
"""Selectors that Linux's 64-bit boot protocol demands (boot.rst)."""
BOOT_DS = 0x18
BOOT_TSS = 0x20
_GDT_SIZE = 0x30

_PRESENT_WRITABLE = 0x3
_PRESENT_WRITABLE_LARGE = 0x83


@record
class Segment:
    """A segment register with its hidden part. ``limit`` in bytes."""

    base: int
    limit: int
    selector: int
    type: int
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741 - the name in struct kvm_segment
    g: int = 0
    avl: int = 0
    unusable: int = 0


@record
class DescriptorTable:
    """GDTR or IDTR: linear address and size in bytes minus one."""

    base: int
    limit: int


@record
class SpecialRegisters:
    """Segments, tables and control registers. Other registers keep KVM's reset values."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr3: int
    cr4: int
    efer: int


@record
class EntryState:
    """The first state of the boot vCPU.

    ``regs``: general registers by name; the others are 0. ``sregs``: set them over
    the result of KVM_GET_SREGS, which keeps ``apic_base``. ``msrs``: index to
    value, for every vCPU, because Linux complains about MTRRs that differ between
    CPUs.
    """

    regs: Mapping[str, int]
    sregs: SpecialRegisters
    msrs: Mapping[int, int]


def long_mode_entry(ram: Ram, entry: int, boot_params: int) -> EntryState:
    """Linux's 64-bit entry: long mode, the first 4 GiB identity-mapped, rsi = boot params.

    Writes the GDT and the page tables. Source: boot.rst, "64-bit Boot Protocol".
    """
    code = Segment(0, 0xFFFFFFFF, BOOT_CS, type=0xB, l=1, g=1)
    _write_page_tables(ram)
    sregs = _flat(ram, code, cr0=CR0_PE | CR0_ET | CR0_PG, cr4=CR4_PAE, efer=EFER_LME | EFER_LMA)
    regs = {"rip": entry, "rsi": boot_params, "rflags": RFLAGS_RESERVED_ONE}
    return EntryState(regs, sregs, _msrs())


def pvh_entry(ram: Ram, entry: int, start_info: int) -> EntryState:
    """The PVH entry: 32-bit protected mode, no paging, flat segments, ebx = start info.

    Also writes a GDT, which PVH does not require, so that selectors keep their
    meaning when the guest loads them again. Source: Xen's docs/misc/pvh.pandoc.
    """
    code = Segment(0, 0xFFFFFFFF, BOOT_CS, type=0xB, db=1, g=1)
    sregs = _flat(ram, code, cr0=CR0_PE | CR0_ET, cr4=0, efer=0)
    regs = {"rip": entry, "rbx": start_info, "rflags": RFLAGS_RESERVED_ONE}
    return EntryState(regs, sregs, _msrs())


def _msrs() -> dict[int, int]:
    # Without enabled MTRRs, Linux treats all memory as uncachable and turns PAT off.
    # Without the fast-string bit, it treats `rep movsb` as slow.
    return {
        MSR_IA32_MISC_ENABLE: MISC_ENABLE_FAST_STRING,
        MSR_MTRR_DEF_TYPE: MTRR_ENABLE | MTRR_WRITE_BACK,
    }


def _flat(ram: Ram, code: Segment, cr0: int, cr4: int, efer: int) -> SpecialRegisters:
    data = Segment(0, 0xFFFFFFFF, BOOT_DS, type=0x3, db=1, g=1)
    # VMX requires a busy TSS in TR, in long mode with a limit of at least 0x67.
    task = Segment(0, 0x67, BOOT_TSS, type=0xB, s=0)
    nothing = Segment(0, 0, 0, type=0, present=0, s=0, unusable=1)
    gdt = bytearray(_GDT_SIZE)
    for segment in (code, data, task):
        struct.pack_into("<Q", gdt, segment.selector, descriptor(segment))
    ram.write(layout.GDT, gdt)
    return SpecialRegisters(
        cs=code,
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=task,
        ldt=nothing,
        gdt=DescriptorTable(layout.GDT, _GDT_SIZE - 1),
        idt=DescriptorTable(0, 0),
        cr0=cr0,
        cr3=layout.PML4 if cr0 & CR0_PG else 0,
        cr4=cr4,
        efer=efer,
    )


def descriptor(segment: Segment) -> int:
    """The 8-byte GDT descriptor of ``segment`` (SDM volume 3, §3.4.5)."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    low = (limit & 0xFFFF) | (segment.base & 0xFFFFFF) << 16
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    high = access | (limit >> 16 & 0xF) << 8 | flags << 12 | (segment.base >> 24 & 0xFF) << 16
    return low | high << 40


def _write_page_tables(ram: Ram) -> None:
    """Map 4 GiB by 2 MiB pages, because a CPU may lack 1 GiB pages."""
    directories = range(
        layout.PAGE_DIRECTORIES | _PRESENT_WRITABLE, layout.BOOT_DATA_END, layout.PAGE
    )
    ram.write(layout.PML4, struct.pack("<Q", layout.PDPT | _PRESENT_WRITABLE))
    ram.write(layout.PDPT, struct.pack(f"<{len(directories)}Q", *directories))
    pages = array("Q", range(_PRESENT_WRITABLE_LARGE, 1 << 32, 2 * layout.MIB))
    ram.write(layout.PAGE_DIRECTORIES, pages.tobytes())
