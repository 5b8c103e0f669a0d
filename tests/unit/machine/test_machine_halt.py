"""Telling a guest that has halted for good from one that waits or works."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pykvm.kvm.constants import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
)
from pykvm.machine.halt import RFLAGS_IF, all_halted


class FakeThread:
    """A VcpuThread with a vCPU that stands still. ``busy``: it cannot be paused."""

    def __init__(self, state, rflags=0, pending=0, injected=0, ended=False, busy=False):
        nmi = SimpleNamespace(pending=pending, injected=injected)
        self.vcpu = SimpleNamespace(
            get_mp_state=lambda: state,
            get_regs=lambda: SimpleNamespace(rflags=rflags | 2),
            get_events=lambda: SimpleNamespace(nmi=nmi),
        )
        self.ended = ended
        self.busy = busy
        self.pauses = 0

    @contextmanager
    def paused(self, timeout):
        if self.busy:
            raise TimeoutError
        self.pauses += 1
        try:
            yield
        finally:
            self.pauses -= 1


def halted() -> FakeThread:
    return FakeThread(KVM_MP_STATE_HALTED)


@pytest.mark.parametrize(
    ("threads", "answer"),
    [
        ([], False),
        ([halted()], True),
        ([halted(), halted()], True),
        ([halted(), FakeThread(KVM_MP_STATE_UNINITIALIZED)], True),
        ([halted(), FakeThread(KVM_MP_STATE_INIT_RECEIVED)], True),
        ([FakeThread(KVM_MP_STATE_RUNNABLE)], False),
        ([halted(), FakeThread(KVM_MP_STATE_RUNNABLE)], False),
        ([FakeThread(KVM_MP_STATE_HALTED, rflags=RFLAGS_IF)], False),
        ([FakeThread(KVM_MP_STATE_HALTED, pending=1)], False),
        ([FakeThread(KVM_MP_STATE_HALTED, injected=1)], False),
        ([FakeThread(KVM_MP_STATE_HALTED, ended=True)], False),
        ([halted(), FakeThread(KVM_MP_STATE_HALTED, busy=True)], False),
    ],
)
def test_only_cpus_that_nothing_can_wake_have_halted(threads, answer):
    assert all_halted(threads) is answer
    assert all(thread.pauses == 0 for thread in threads)


def test_all_are_paused_while_the_last_is_looked_at():
    """Else one could wake another, halt, and be found halted like the one it has woken."""
    threads = [halted(), halted(), halted()]
    seen = []

    def state():
        seen.append([thread.pauses for thread in threads])
        return KVM_MP_STATE_HALTED

    threads[-1].vcpu.get_mp_state = state
    assert all_halted(threads)
    assert seen == [[1, 1, 1]]
