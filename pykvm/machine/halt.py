"""Finds out that a guest has halted permanently.

A guest without ACPI cannot power off: it halts with interrupts off, and so
do its other CPUs. With KVM's own interrupt controllers HLT makes no exit, so
no event tells of such a halt, and the main thread polls for it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pykvm.kvm.constants import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
)
from pykvm.kvm.runner import VcpuThread
from pykvm.kvm.vcpu import Vcpu
from pykvm.machine.vcpu_group import VcpuGroup

RFLAGS_IF = 1 << 9

FIRST_POLL_SECONDS = 0.1
LAST_POLL_SECONDS = 1.0
PAUSE_SECONDS = 0.2
"""A vCPU that cannot be paused in this time is busy, and so it is not halted."""


class HaltPoll:
    """Polls the vCPUs for a permanent halt, only while the guest makes no exits.

    The first poll comes soon after the last exit. The time between polls then
    doubles up to LAST_POLL_SECONDS, so that an idle guest costs no measurable
    CPU time. ``seconds`` is the time until the next poll.
    """

    def __init__(self, vcpus: VcpuGroup, unless_busy: Callable[[Callable[[], bool]], bool]) -> None:
        """``unless_busy``: see :meth:`RunControl.unless_busy`."""
        self.seconds = FIRST_POLL_SECONDS
        self._vcpus = vcpus
        self._unless_busy = unless_busy
        self._exits = -1

    def poll(self) -> bool:
        """True if the guest has halted permanently. Call it every ``seconds``."""
        before, self._exits = self._exits, self._vcpus.guest_exits()
        silent = before == self._exits
        self.seconds = min(2 * self.seconds, LAST_POLL_SECONDS) if silent else FIRST_POLL_SECONDS
        # A stopped guest may wait for an interrupt that comes after its resume.
        return silent and self._unless_busy(lambda: all_halted(self._vcpus.threads))


def all_halted(threads: Sequence[VcpuThread]) -> bool:
    """True if no vCPU can ever execute an instruction again.

    Then each vCPU is halted with interrupts off, or was never started, and
    none has a pending NMI, which would wake it. All vCPUs are paused during
    the check, because a running one could wake a second one and then halt. A
    vCPU whose exit takes long to handle, as when no process reads the console, is
    not halted.
    """
    try:
        with ExitStack() as paused:
            for thread in threads:
                if thread.ended:
                    return False
                paused.enter_context(thread.paused(PAUSE_SECONDS))
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
