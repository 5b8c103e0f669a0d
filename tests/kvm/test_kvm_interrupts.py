"""irqfd, MSI routes, INTx lines and doorbells on real KVM."""

import os
import threading
from contextlib import ExitStack

import pytest
from patience import patience

from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import Interrupted, IoExit
from pykvm.kvm.pci_services import KvmPciServices
from pykvm.pci.services import InterruptLine, MsiVector, PciServices
from pykvm.x86.mptable import pci_gsi

pytestmark = pytest.mark.kvm

MSI_ADDRESS = 0xFEE00000


@pytest.fixture
def services(irqchip_machine):
    return KvmPciServices(irqchip_machine.vm)


@pytest.fixture
def vcpu(irqchip_machine):
    """A vCPU whose local APIC accepts interrupts and that does not run."""
    vcpu = irqchip_machine.real_mode(b"\xf4")
    enable_apic(vcpu)
    return vcpu


def enable_apic(vcpu) -> None:
    lapic = bytearray(vcpu.get_lapic())
    lapic[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")  # spurious vector register: enabled
    vcpu.set_lapic(bytes(lapic))


@pytest.fixture
def vectors(services):
    """Makes vectors, and closes them."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(services.msi_vector())


def pending(vcpu) -> set[int]:
    """The vectors in the local APIC's interrupt request register, which are then cleared."""
    lapic = bytearray(vcpu.get_lapic())
    found = set()
    for vector in range(256):
        at = 0x200 + 16 * (vector // 32)
        if int.from_bytes(lapic[at : at + 4], "little") >> (vector % 32) & 1:
            found.add(vector)
    for word in range(8):
        lapic[0x200 + 16 * word : 0x204 + 16 * word] = bytes(4)
    vcpu.set_lapic(bytes(lapic))
    return found


def eventually(vcpu, expected: set[int]) -> None:
    """KVM may deliver from a worker thread."""
    seen: set[int] = set()
    for _ in range(200):
        seen |= pending(vcpu)
        if seen >= expected:
            break
        threading.Event().wait(0.005)
    assert seen == expected


def never(vcpu) -> None:
    threading.Event().wait(0.03)
    assert pending(vcpu) == set()


def test_services_implement_the_protocols_of_pci(services, vectors):
    given: PciServices = services
    vector: MsiVector = vectors()
    line: InterruptLine = given.interrupt_line(2, 1)
    assert vector.eventfd > 2
    assert line.gsi == 18


def test_interrupt_lines_are_those_of_the_mp_table(services):
    for device in range(32):
        for pin in range(1, 5):
            assert services.interrupt_line(device, pin).gsi == pci_gsi(device, pin)


def test_eventfd_raises_the_routed_message(vcpu, vectors):
    vector = vectors()
    vector.route(MSI_ADDRESS, 0x50)
    os.eventfd_write(vector.eventfd, 1)
    eventually(vcpu, {0x50})
    vector.route(MSI_ADDRESS, 0x51)
    os.eventfd_write(vector.eventfd, 1)
    eventually(vcpu, {0x51})


def test_masked_vector_collects_and_delivers_once(vcpu, vectors):
    vector = vectors()
    os.eventfd_write(vector.eventfd, 1)
    os.eventfd_write(vector.eventfd, 1)
    never(vcpu)
    vector.route(MSI_ADDRESS, 0x50)
    eventually(vcpu, {0x50})
    never(vcpu)
    vector.mask()
    assert not vector.take_pending()
    os.eventfd_write(vector.eventfd, 1)
    never(vcpu)
    assert vector.take_pending()
    assert not vector.take_pending()
    vector.route(MSI_ADDRESS, 0x50)
    never(vcpu)  # it was taken


def test_delivered_signal_is_not_pending_after_masking(vcpu, vectors):
    vector = vectors()
    vector.route(MSI_ADDRESS, 0x50)
    for _ in range(3):
        os.eventfd_write(vector.eventfd, 1)
        vector.mask()
        assert not vector.take_pending()
        eventually(vcpu, {0x50})
        vector.route(MSI_ADDRESS, 0x50)
    never(vcpu)


def test_assigning_raises_signals_that_wait_in_the_eventfd(irqchip_machine, services, vcpu):
    # KvmMsiVector relies on this for a signal that slips in as it connects.
    gsi = services.router.allocate()
    services.router.route(gsi, MSI_ADDRESS, 0x60)
    eventfd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        irqchip_machine.vm.irqfd(eventfd, gsi)
        eventually(vcpu, {0x60})
        irqchip_machine.vm.irqfd(eventfd, gsi, assign=False)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(eventfd)  # emptied when unhooked
    finally:
        os.close(eventfd)


def test_routes_do_not_disturb_each_other(vcpu, vectors):
    # Every signal on one vector arrives while the route of a second one keeps changing.
    steady, busy = vectors(), vectors()
    steady.route(MSI_ADDRESS, 0x70)
    done = threading.Event()

    def churn() -> None:
        count = 0
        while not done.is_set():
            count += 1
            busy.route(MSI_ADDRESS, 0x80 + count % 8)
            if count % 5 == 0:
                busy.mask()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(100):
            os.eventfd_write(steady.eventfd, 1)
            eventually(vcpu, {0x70})
    finally:
        done.set()
        thread.join(patience())


def test_gsis_are_reused(services):
    first, second = services.msi_vector(), services.msi_vector()
    assert (first.gsi, second.gsi) == (24, 25)
    first.route(MSI_ADDRESS, 0x50)
    first.close()
    first.close()
    third = services.msi_vector()
    assert third.gsi == 24
    second.close()
    third.close()


def test_interrupt_is_delivered_to_a_running_guest(irqchip_machine, vcpu, vectors):
    ram = irqchip_machine.ram
    ram.write(0x1000, b"\xfb\xf4\xeb\xfc")  # sti; hlt; jmp back
    ram.write(0x2000, b"\xb0\x50\xe6\x80\xcf")  # mov al, 0x50; out 0x80, al; iret
    ram.write(4 * 0x50, b"\x00\x20\x00\x00")  # interrupt vector table
    vector = vectors()
    vector.route(MSI_ADDRESS, 0x50)
    timer = threading.Timer(0.02, os.eventfd_write, (vector.eventfd, 1))
    timer.start()
    while isinstance(reason := vcpu.run(), Interrupted):
        pass
    timer.join()
    assert isinstance(reason, IoExit)
    assert reason.value == 0x50


def test_a_shared_line_is_high_while_one_function_asserts_it(
    irqchip_machine, services, monkeypatch
):
    driven = []
    monkeypatch.setattr(services._lines[2], "_drive", lambda *args: driven.append(args))
    one, other = services.interrupt_line(2, 1), services.interrupt_line(9, 2)
    assert one.gsi == other.gsi == 18
    one.set(True)
    one.set(True)
    other.set(True)
    one.set(False)
    assert driven == [(18, True)]
    other.set(False)
    assert driven == [(18, True), (18, False)]


def test_a_line_reaches_the_interrupt_controller(irqchip_machine, services):
    # The guest programs I/O APIC pin 18: vector 0x52, level-triggered. Then out 0x80, al.
    code = "bb0000c0fe c70334000000 c7431052800000 c70335000000 c7431000000000 e680"
    vcpu = irqchip_machine.long_mode(bytes.fromhex(code))
    enable_apic(vcpu)
    while isinstance(vcpu.run(), Interrupted):
        pass
    assert pending(vcpu) == set()
    services.interrupt_line(3, 1).set(True)
    assert pending(vcpu) == set()
    services.interrupt_line(2, 1).set(True)
    eventually(vcpu, {0x52})


@pytest.mark.parametrize("length", [0, 2])
def test_mmio_doorbell_causes_no_exit(machine, length):
    # mov rbx, 0x200000; mov word [rbx], 7 (twice); out 0x80, al
    code = bytes.fromhex("48c7c300002000 66c7030700 66c7030700 e680")
    vcpu = machine.long_mode(code)
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        machine.vm.ioeventfd(eventfd, 0x200000, length)
        while isinstance(reason := vcpu.run(), Interrupted):
            pass
        assert isinstance(reason, IoExit)
        assert os.eventfd_read(eventfd) == 2
        machine.vm.ioeventfd(eventfd, 0x200000, length, assign=False)
        with pytest.raises(KvmError, match="KVM_IOEVENTFD"):
            machine.vm.ioeventfd(eventfd, 0x200000, length, assign=False)
    finally:
        os.close(eventfd)


def test_doorbell_through_the_services(irqchip_machine, services):
    vcpu = irqchip_machine.long_mode(bytes.fromhex("48c7c300002000 66c7030700 e680"))
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        services.bind_doorbell(0x200000, 0, eventfd)
        while isinstance(vcpu.run(), Interrupted):
            pass
        assert os.eventfd_read(eventfd) == 1
        services.unbind_doorbell(0x200000, 0, eventfd)
    finally:
        os.close(eventfd)
