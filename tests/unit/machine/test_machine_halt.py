"""A guest that has halted permanently is told from one that waits or works."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pykvm.kvm.constants import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
)
from pykvm.machine.halt import (
    FIRST_POLL_SECONDS,
    LAST_POLL_SECONDS,
    RFLAGS_IF,
    HaltPoll,
    all_halted,
)


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
def test_only_a_cpu_that_nothing_can_wake_has_halted_permanently(threads, answer):
    assert all_halted(threads) is answer
    assert all(thread.pauses == 0 for thread in threads)


def test_all_vcpus_are_paused_during_the_check():
    """Else a vCPU could wake one that was found halted, and then halt too."""
    threads = [halted(), halted(), halted()]
    seen = []

    def state():
        seen.append([thread.pauses for thread in threads])
        return KVM_MP_STATE_HALTED

    threads[-1].vcpu.get_mp_state = state
    assert all_halted(threads)
    assert seen == [[1, 1, 1]]


def poll_of(exits: list[int], undisturbed: bool = True) -> HaltPoll:
    """A poll of a halted vCPU, before each of whose polls the guest has made ``exits``."""
    group = SimpleNamespace(threads=[halted()], guest_exits=iter(exits).__next__)
    return HaltPoll(group, lambda look: undisturbed and look())


def test_a_halt_is_found_when_the_guest_makes_no_more_exits():
    poll = poll_of([5, 6, 6])
    assert [poll.poll() for _ in range(3)] == [False, False, True]


def test_a_stopped_guest_is_not_taken_for_a_halted_one():
    poll = poll_of([5, 5, 5], undisturbed=False)
    assert not any(poll.poll() for _ in range(3))


def test_polls_of_a_silent_guest_become_rare():
    poll = poll_of([5] * 9 + [6], undisturbed=False)
    waits = []
    for _ in range(10):
        poll.poll()
        waits.append(poll.seconds)
    assert waits[:3] == [FIRST_POLL_SECONDS, 2 * FIRST_POLL_SECONDS, 4 * FIRST_POLL_SECONDS]
    assert waits[8:] == [LAST_POLL_SECONDS, FIRST_POLL_SECONDS]
