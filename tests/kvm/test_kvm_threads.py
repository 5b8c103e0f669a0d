"""vCPU threads: stopped, paused and resumed at once, whatever the guest does."""

import os
import signal
import threading
import time

import pytest
from patience import patience, until

from pykvm.kvm import constants as c
from pykvm.kvm import runner
from pykvm.kvm.exits import Hlt, Interrupted, IoExit, MmioExit
from pykvm.kvm.runner import KICK_SIGNAL, VcpuThread

pytestmark = pytest.mark.kvm

COUNTER = 0x3000
# inc word [0x3000]; jmp back
SPIN_REAL = b"\xff\x06\x00\x30\xeb\xfa"
# inc dword [0x3000]; jmp back
SPIN_LONG = bytes.fromhex("ff042500300000 ebf7")


@pytest.fixture(params=["emulated kernel", "user"])
def spinning(request, machine):
    """A vCPU that counts in memory for ever, in either of two modes."""
    if request.param == "user":
        return machine.long_mode(SPIN_LONG, cpl=3)
    return machine.real_mode(SPIN_REAL)


def unexpected(reason: object) -> str:
    return f"unexpected: {reason}"


def wait_for_change(machine) -> None:
    before = machine.ram.read(COUNTER, 4)
    until(lambda: machine.ram.read(COUNTER, 4) != before, "the guest does not run")


def test_stop_of_a_spinning_guest(machine, spinning):
    ends = []
    thread = VcpuThread(spinning, unexpected, ends.append)
    thread.start()
    wait_for_change(machine)
    thread.stop()
    thread.join(patience())
    assert ends == [thread]
    assert (thread.ended, thread.outcome, thread.error) == (True, None, None)
    assert thread.exit_counts == {"Interrupted": 1}
    thread.stop()  # again is harmless
    thread.join()


def test_pause_and_resume(machine, spinning):
    thread = VcpuThread(spinning, unexpected)
    thread.start()
    try:
        for _ in range(20):
            wait_for_change(machine)
            with thread.paused(patience()):
                count = machine.ram.read(COUNTER, 4)
                assert 0x1000 <= spinning.get_regs().rip < 0x1010
                time.sleep(0.005)
                assert machine.ram.read(COUNTER, 4) == count
        with thread.paused():
            with thread.paused():
                pass
            count = machine.ram.read(COUNTER, 4)
            time.sleep(0.02)
            assert machine.ram.read(COUNTER, 4) == count, "the inner resume let it run"
        wait_for_change(machine)
    finally:
        thread.stop()
        thread.join(patience())
    assert thread.error is None
    with thread.paused():  # of an ended thread: at once
        pass


def test_a_pause_begins_where_the_vcpu_can_stop(machine, spinning):
    answers = [False, False, True]
    thread = VcpuThread(spinning, unexpected, can_stop=lambda vcpu: answers.pop(0))
    thread.start()
    try:
        wait_for_change(machine)
        with thread.paused(patience()):
            assert answers == []
            count = machine.ram.read(COUNTER, 4)
            time.sleep(0.01)
            assert machine.ram.read(COUNTER, 4) == count
        wait_for_change(machine)
    finally:
        thread.stop()
        thread.join(patience())
    assert thread.error is None


def test_a_vcpu_that_can_nowhere_stop_pauses_in_the_end(machine, spinning):
    asked = []
    thread = VcpuThread(spinning, unexpected, can_stop=asked.append)
    thread.start()
    try:
        for _ in range(2):
            wait_for_change(machine)
            asked.clear()
            with thread.paused(patience()):
                assert len(asked) > 1
    finally:
        thread.stop()
        thread.join(patience())
    assert thread.error is None


MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01
CLOCK = 0x4000
CLOCK_FLAGS = CLOCK + 29
"""In struct pvclock_vcpu_time_info (Documentation/virt/kvm/x86/msr.rst)."""
GUEST_STOPPED = 2


@pytest.mark.parametrize(("limit", "told"), [(0.0, GUEST_STOPPED), (3600.0, 0)])
def test_a_guest_is_told_of_a_long_pause(machine, monkeypatch, limit, told):
    """Through its kvm-clock, which then silences its lockup detectors."""
    vcpu = machine.long_mode(SPIN_LONG, cpl=3)
    vcpu.set_msrs({MSR_KVM_SYSTEM_TIME_NEW: CLOCK | 1})
    thread = VcpuThread(vcpu, unexpected)
    thread.start()
    try:
        wait_for_change(machine)
        assert machine.ram.read(CLOCK, 32) != bytes(32), "the guest has a clock"
        monkeypatch.setattr(runner, "LONG_PAUSE_SECONDS", limit)
        thread.pause(patience())
        assert machine.ram.read(CLOCK_FLAGS, 1)[0] & GUEST_STOPPED == 0
        thread.resume()
        wait_for_change(machine)
        with thread.paused(patience()):
            assert machine.ram.read(CLOCK_FLAGS, 1)[0] & GUEST_STOPPED == told
    finally:
        thread.stop()
        thread.join(patience())
    assert thread.error is None


def test_a_guest_without_a_clock_continues_after_a_long_pause(machine, spinning, monkeypatch):
    monkeypatch.setattr(runner, "LONG_PAUSE_SECONDS", 0.0)
    thread = VcpuThread(spinning, unexpected)
    thread.start()
    try:
        wait_for_change(machine)
        with thread.paused(patience()):
            pass
        wait_for_change(machine)
    finally:
        thread.stop()
        thread.join(patience())
    assert thread.error is None


def test_stop_while_paused(machine, spinning):
    thread = VcpuThread(spinning, unexpected)
    thread.start()
    thread.pause()
    thread.stop()
    thread.join(patience())
    assert thread.ended


def test_stop_before_start(machine, spinning):
    thread = VcpuThread(spinning, unexpected)
    thread.join(1)
    thread.stop()
    thread.start()
    thread.join(patience())
    assert thread.exit_counts == {}


def test_kicks_at_any_moment(machine):
    # The guest exits all the time, so a kick finds the thread anywhere:
    # in KVM_RUN, in the handler, and between its last look and KVM_RUN.
    vcpu = machine.real_mode(b"\xe6\x80\xeb\xfc")  # out 0x80, al; jmp back
    thread = VcpuThread(vcpu, lambda reason: None)
    thread.start()
    seen = 0
    for delay in range(300):
        time.sleep(1e-6 * delay)
        with thread.paused(patience()):
            count = thread.exit_counts.get("IoExit", 0)
            assert thread.exit_counts.get("IoExit", 0) == count
            seen += count > 0
    thread.stop()
    thread.join(patience())
    assert thread.error is None
    assert seen > 100


def test_start_and_stop_over_and_over(machine):
    vcpu = machine.long_mode(SPIN_LONG, cpl=3)
    for _ in range(50):
        thread = VcpuThread(vcpu, unexpected)
        thread.start()
        thread.stop()
        thread.join(patience())
        assert thread.error is None


def test_kicks_from_a_second_thread_run_no_handler(machine, spinning):
    ran = []
    before = signal.signal(KICK_SIGNAL, lambda *_: ran.append("handler"))
    try:
        thread = VcpuThread(spinning, unexpected)
        thread.start()
        wait_for_change(machine)
        stopper = threading.Thread(target=thread.stop)
        stopper.start()
        thread.join(patience())
        stopper.join(patience())
    finally:
        signal.signal(KICK_SIGNAL, before)
    assert ran == []


def test_other_signals_wait_for_the_main_thread(machine, spinning):
    got = []
    before = signal.signal(signal.SIGUSR2, lambda *_: got.append("handler"))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        thread = VcpuThread(spinning, unexpected)
        thread.start()
        wait_for_change(machine)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.02)
        assert thread.exit_counts == {}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        assert got == ["handler"]
        thread.stop()
        thread.join(patience())
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def test_vcpu_is_interruptible_again_after_its_thread(machine, spinning):
    thread = VcpuThread(spinning, unexpected)
    thread.start()
    thread.stop()
    thread.join(patience())
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    main = threading.get_ident()
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGUSR1))
    try:
        timer.start()
        assert spinning.run() == Interrupted()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_outcome_ends_the_thread(machine):
    vcpu = machine.real_mode(b"\xb0\x07\xe6\xf4\xf4")  # mov al, 7; out 0xf4, al; hlt

    def handle(reason):
        return reason.value if isinstance(reason, IoExit) and reason.port == 0xF4 else None

    thread = VcpuThread(vcpu, handle)
    thread.start()
    thread.join(patience())
    assert (thread.outcome, thread.error) == (7, None)
    assert thread.exit_counts == {"IoExit": 1}


def test_exception_ends_the_thread_and_is_kept(machine):
    ends = []
    vcpu = machine.real_mode(b"\xf4")

    def handle(reason):
        raise LookupError(str(reason))

    thread = VcpuThread(vcpu, handle, ends.append)
    thread.start()
    thread.join(patience())
    assert ends == [thread]
    assert isinstance(thread.error, LookupError)


def test_handler_may_stop_its_own_thread(machine):
    vcpu = machine.real_mode(b"\xe6\x80\xeb\xfc")
    thread = VcpuThread(vcpu, lambda reason: thread.stop())
    thread.start()
    thread.join(patience())
    assert thread.exit_counts == {"IoExit": 1, "Interrupted": 1}


def test_pause_of_a_busy_handler_times_out(machine):
    release, entered = threading.Event(), threading.Event()
    vcpu = machine.real_mode(b"\xe6\x80\xf4")

    def handle(reason):
        entered.set()
        release.wait(patience())
        return "done" if isinstance(reason, Hlt) else None

    thread = VcpuThread(vcpu, handle)
    thread.start()
    assert entered.wait(patience())
    with pytest.raises(TimeoutError, match="did not pause"):
        thread.pause(0.05)
    with pytest.raises(TimeoutError, match="did not end"):
        thread.join(0.01)
    release.set()
    thread.join(patience())
    assert thread.outcome == "done"  # the pause that failed left nothing behind


def test_pause_completes_the_pending_read(machine):
    vcpu = machine.real_mode(b"\xe4\x80\xeb\xfc")  # in al, 0x80; jmp back
    thread = VcpuThread(vcpu, lambda reason: reason.set_value(0x5A))
    thread.start()
    until(lambda: thread.exit_counts)
    for _ in range(20):
        with thread.paused():
            assert vcpu.get_regs().rax & 0xFF == 0x5A
    thread.stop()
    thread.join(patience())


@pytest.mark.parametrize("mode", ["emulated kernel", "user"])
def test_two_vcpus_run_at_once(machine, mode):
    # Each sets its flag and spins until it sees the other's; neither could
    # get past that if they took turns. A last write says that it did.
    threads = []
    for index in (0, 1):
        mine, other = 0x3000 + index, 0x3001 - index
        if mode == "user":
            code = b"\xc6\x04\x25" + mine.to_bytes(4, "little") + b"\x01"
            code += b"\x80\x3c\x25" + other.to_bytes(4, "little") + b"\x00\x74\xf6"
            code += bytes.fromhex("c604250000200001")  # mov byte [0x200000], 1
            vcpu = machine.long_mode(code, index, 0x1000 + 0x100 * index, cpl=3)
        else:
            code = b"\xc6\x06" + mine.to_bytes(2, "little") + b"\x01"
            code += b"\x80\x3e" + other.to_bytes(2, "little") + b"\x00\x74\xf9\xf4"
            vcpu = machine.real_mode(code, index, 0x1000 + 0x100 * index)
        threads.append(VcpuThread(vcpu, lambda reason: reason))
    threads[0].start()
    time.sleep(0.02)
    assert not threads[0].ended, "it did not wait for the other"
    threads[1].start()
    for thread in threads:
        thread.join(patience())
    for thread in threads:
        assert isinstance(thread.outcome, MmioExit if mode == "user" else Hlt), thread.error


def test_application_processor_waits_and_stops(irqchip_machine):
    # With local APICs, vCPU 1 waits in KVM_RUN for INIT and SIPI.
    vcpu = irqchip_machine.real_mode(b"\xf4", index=1)
    assert vcpu.get_mp_state() == c.KVM_MP_STATE_UNINITIALIZED
    thread = VcpuThread(vcpu, unexpected)
    thread.start()
    time.sleep(0.02)
    with thread.paused():
        pass
    thread.stop()
    thread.join(patience())
    assert (thread.error, thread.outcome) == (None, None)


def test_idle_guest_stops(irqchip_machine):
    # With the irqchip, HLT waits in the kernel and gives no exit.
    vcpu = irqchip_machine.real_mode(b"\xf4\xeb\xfd")
    thread = VcpuThread(vcpu, unexpected)
    thread.start()
    time.sleep(0.02)
    thread.stop()
    thread.join(patience())
    assert (thread.error, thread.outcome) == (None, None)
