"""Has the guest halted for good?

A guest without ACPI cannot power off: it halts with interrupts off, and so
do its other CPUs. With KVM's own interrupt controllers HLT makes no exit, so
nothing tells us; we have to look.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from pykvm.kvm.constants import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
)
from pykvm.kvm.runner import VcpuThread
from pykvm.kvm.vcpu import Vcpu

RFLAGS_IF = 1 << 9

LOOK_SECONDS = 0.2
"""A vCPU that cannot be paused in this time is busy, and so it is not halted."""


def all_halted(threads: Sequence[VcpuThread]) -> bool:
    """Whether no vCPU can ever execute another instruction.

    Each is halted with interrupts off, or has never been started; and no NMI
    is pending, which alone would wake one. They are looked at while all are
    paused: one that runs could wake another and then halt itself. A vCPU
    whose exit takes long to handle, as when nobody reads the console, is not
    halted.
    """
    try:
        with ExitStack() as paused:
            for thread in threads:
                if thread.ended:
                    return False
                paused.enter_context(thread.paused(LOOK_SECONDS))
                if not _halted(thread.vcpu):
                    return False
    except TimeoutError:
        return False
    return bool(threads)


def _halted(vcpu: Vcpu) -> bool:
    state = vcpu.get_mp_state()
    if state in (KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED):
        # Only another CPU can start this one; the boot CPU never is in these states.
        return True
    if state != KVM_MP_STATE_HALTED or vcpu.get_regs().rflags & RFLAGS_IF:
        return False
    nmi = vcpu.get_events().nmi
    return not (nmi.pending or nmi.injected)
