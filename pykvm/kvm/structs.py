"""The register structures of KVM as types, for readers and for mypy.

The objects behind them are cffi views of C structures: attributes read and write
the memory that KVM sees. A value that does not fit into an unsigned field raises
OverflowError. Field meanings: <asm/kvm.h>.
"""

from typing import Protocol


class Regs(Protocol):
    """struct kvm_regs: the general registers, 64 bits each."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


class Segment(Protocol):
    """struct kvm_segment: a segment register with its hidden part.

    ``limit`` is in bytes for any value of ``g``; ``s`` is 0 for system segments;
    ``l`` marks 64-bit code; ``unusable`` a null selector.
    """

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741
    g: int
    avl: int
    unusable: int


class DescriptorTable(Protocol):
    """struct kvm_dtable: GDTR or IDTR."""

    base: int
    limit: int


class Sregs(Protocol):
    """struct kvm_sregs: segment, control and system registers."""

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
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int


class ExceptionEvent(Protocol):
    """kvm_vcpu_events.exception: a fault being delivered (``injected``) or ``pending``."""

    injected: int
    nr: int
    has_error_code: int
    pending: int
    error_code: int


class InterruptEvent(Protocol):
    """kvm_vcpu_events.interrupt; ``shadow`` is the STI or MOV SS window."""

    injected: int
    nr: int
    soft: int
    shadow: int


class NmiEvent(Protocol):
    """kvm_vcpu_events.nmi."""

    injected: int
    pending: int
    masked: int


class VcpuEvents(Protocol):
    """struct kvm_vcpu_events; ``flags`` (KVM_VCPUEVENT_VALID_*) selects the parts
    that a write sets.
    """

    exception: ExceptionEvent
    interrupt: InterruptEvent
    nmi: NmiEvent
    sipi_vector: int
    flags: int
    exception_has_payload: int
    exception_payload: int
