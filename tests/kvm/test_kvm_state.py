"""A vCPU's state: fetched, changed, and brought back."""

import pytest

from pykvm.kvm import constants as c
from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import Hlt, Interrupted, IoExit
from pykvm.kvm.vcpu import Vcpu

pytestmark = pytest.mark.kvm

ALL = c.KVM_SYNC_X86_REGS | c.KVM_SYNC_X86_SREGS | c.KVM_SYNC_X86_EVENTS
# Three times: out 0x80, al; then hlt.
OUTS = b"\xe6\x80\xe6\x80\xe6\x80\xf4"


@pytest.fixture(params=["ioctls", "sync", "no sync capability"])
def synced(request, machine) -> Vcpu:
    """A vCPU whose registers come by either way; they have to behave alike."""
    vcpu = machine.real_mode(OUTS)
    if request.param == "sync":
        machine.vm.require(c.KVM_CAP_SYNC_REGS)
        assert vcpu.sync(ALL) == ALL
    elif request.param == "no sync capability":
        vcpu._sync_caps = 0
        assert vcpu.sync(ALL) == 0
    return vcpu


def test_registers_follow_the_guest(synced):
    assert synced.regs.rip == 0x1000  # before the first run
    synced.regs.rax = 0x11
    synced.changed(c.KVM_SYNC_X86_REGS)
    first = synced.run()
    assert isinstance(first, IoExit)
    assert first.value == 0x11
    synced.complete_io()
    assert synced.regs.rip == 0x1002
    synced.regs.rax = 0x22
    synced.changed(c.KVM_SYNC_X86_REGS)
    assert synced.run().value == 0x22
    synced.complete_io()
    assert synced.regs.rip == 0x1004
    assert synced.sregs.cs.base == 0
    synced.regs.rip = 0x1006
    synced.changed(c.KVM_SYNC_X86_REGS)
    assert synced.run() == Hlt()


def test_changed_sregs_and_events_arrive(synced):
    synced.sregs.gs.base = 0x1230
    synced.sregs.gs.selector = 0x123
    synced.events.nmi.masked = 1
    synced.changed(c.KVM_SYNC_X86_SREGS | c.KVM_SYNC_X86_EVENTS)
    synced.run()
    assert synced.get_sregs().gs.base == 0x1230
    assert synced.get_events().nmi.masked == 1


def test_ioctls_and_views_agree(synced):
    synced.regs.rbx = 5
    synced.changed(c.KVM_SYNC_X86_REGS)
    regs = synced.get_regs()  # sees changes that KVM_RUN has not taken over yet
    assert regs.rbx == 5
    regs.rbx = 6
    synced.set_regs(regs)
    assert synced.regs.rbx == 6  # the view is not stale


def test_complete_io_does_not_run_the_guest(machine):
    vcpu = machine.real_mode(b"\xe4\x80\xe6\x81\xf4")  # in al, 0x80; out 0x81, al
    read = vcpu.run()
    read.set_value(0x5A)
    assert vcpu.complete_io() == Interrupted()
    assert (vcpu.regs.rip, vcpu.regs.rax & 0xFF) == (0x1002, 0x5A)
    assert vcpu.run().value == 0x5A


def test_immediate_exit(machine):
    vcpu = machine.real_mode(b"\xeb\xfe")
    vcpu.set_immediate_exit(True)
    assert vcpu.run() == Interrupted()
    assert vcpu.run() == Interrupted()
    vcpu.set_immediate_exit(False)


def test_state_round_trips(irqchip_machine):
    vcpu = irqchip_machine.long_mode(b"\xf4")
    debug = vcpu.get_debugregs()
    debug.db[0] = 0x1234
    vcpu.set_debugregs(debug)
    assert vcpu.get_debugregs().db[0] == 0x1234
    lapic = vcpu.get_lapic()
    assert len(lapic) == 1024
    vcpu.set_lapic(lapic)
    assert vcpu.get_mp_state() == c.KVM_MP_STATE_RUNNABLE
    assert vcpu.tsc_khz() > 100_000


def test_msrs(irqchip_machine):
    vcpu = irqchip_machine.long_mode(b"\xf4")
    vcpu.set_msrs({0xC0000082: 0x1000, 0xC0000084: 0x47700})
    assert vcpu.get_msrs([0xC0000084, 0xC0000082]) == {0xC0000084: 0x47700, 0xC0000082: 0x1000}
    with pytest.raises(KvmError, match="cannot read MSR 0x12345678"):
        vcpu.get_msrs([0xC0000082, 0x12345678])
    with pytest.raises(KvmError, match="refuses the value for MSR 0x12345678"):
        vcpu.set_msrs({0x12345678: 1})


def test_cpuid(machine):
    vcpu = machine.long_mode(b"\xf4")
    entries = machine.kvm.supported_cpuid()
    assert entries[0].function == 0
    vcpu.set_cpuid2(entries)
    with pytest.raises(KvmError, match="KVM_SET_CPUID2 failed"):
        vcpu.set_cpuid2(entries * 20)


def test_refused_state_is_an_error(machine):
    vcpu = machine.long_mode(b"\xf4")
    sregs = vcpu.get_sregs()
    sregs.cr4 = 0  # long mode without PAE
    sregs.cr0 |= 1 << 31
    with pytest.raises(KvmError, match="KVM_SET_SREGS failed") as caught:
        vcpu.set_sregs(sregs)
    assert caught.value.errno == 22
